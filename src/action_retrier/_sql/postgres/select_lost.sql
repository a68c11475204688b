-- Of the attempts a worker is executing, find those that do not own their run any more.
-- In:  attempts (JSON array of {id, attempt})
-- Out: id, attempt, state (NULL when the run is gone).
SELECT given.id, given.attempt, r.state
  FROM json_to_recordset(CAST(:attempts AS json)) AS given (id text, attempt bigint)
  LEFT JOIN {schema}.runs AS r ON r.id = given.id
 WHERE r.id IS NULL OR r.state <> 'running' OR r.attempt <> given.attempt;
