-- Find the runs that own idempotency keys.
-- In:  namespace, keys (JSON array of {action, key})
-- Out: id, action, key, args.
SELECT r.id, r.action, r.idempotency_key AS key, r.args
  FROM json_to_recordset(CAST(:keys AS json)) AS given (action text, key text)
  JOIN {schema}.runs AS r
    ON r.namespace = CAST(:namespace AS text) AND r.action = given.action AND r.idempotency_key = given.key;
