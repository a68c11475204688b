-- List what a worker executes, and what it calls back.
-- In:  worker
-- Out: id, attempt (NULL for a callback).
SELECT id, attempt
  FROM action_retrier_runs
 WHERE state = 'running' AND worker = CAST(:worker AS TEXT)
 UNION ALL
SELECT id, NULL
  FROM action_retrier_runs
 WHERE callback_worker = CAST(:worker AS TEXT) AND callback_worker IS NOT NULL;
