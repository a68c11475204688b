-- Find the runs that own idempotency keys.
-- In:  namespace, keys (JSON array of {action, key})
-- Out: id, action, key, args.
SELECT r.id, r.action, r.idempotency_key AS key, r.args
  FROM json_each(CAST(:keys AS TEXT)) AS given
 CROSS JOIN action_retrier_runs AS r -- or the planner looks at every key of the namespace for each one given
    ON r.namespace = CAST(:namespace AS TEXT)
   AND r.action = json_extract(given.value, '$.action')
   AND r.idempotency_key = json_extract(given.value, '$.key');
