-- Read the history of runs: the attempts that did not succeed, oldest first.
-- In:  ids (JSON array)
-- Out: run_id, number, worker, started_at, ended_at (us UTC), error_type, error, traceback, delay (us or NULL).
SELECT run_id, number, worker, started_at, ended_at, error_type, error, traceback, delay
  FROM {schema}.attempts
 WHERE run_id IN (SELECT value FROM json_array_elements_text(CAST(:ids AS json)))
 ORDER BY run_id, number;
