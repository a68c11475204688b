-- Of the attempts a worker is executing, find those that do not own their run any more.
-- In:  attempts (JSON array of {id, attempt})
-- Out: id, attempt, state (NULL when the run is gone).
SELECT json_extract(given.value, '$.id') AS id, json_extract(given.value, '$.attempt') AS attempt, r.state
  FROM json_each(CAST(:attempts AS TEXT)) AS given
  LEFT JOIN action_retrier_runs AS r ON r.id = json_extract(given.value, '$.id')
 WHERE r.id IS NULL OR r.state <> 'running' OR r.attempt <> json_extract(given.value, '$.attempt');
