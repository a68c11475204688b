-- List what a worker executes, and what it calls back.
-- In:  worker
-- Out: id, attempt (NULL for a callback).
SELECT id, attempt
  FROM {schema}.runs
 WHERE state = 'running' AND worker = CAST(:worker AS text)
 UNION ALL
SELECT id, NULL
  FROM {schema}.runs
 WHERE callback_worker = CAST(:worker AS text) AND callback_worker IS NOT NULL;
