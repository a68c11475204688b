-- Count what each worker owns: the runs it executes and the callbacks it is calling.
-- In:  namespace
-- Out: id (of a worker whose row may be gone), runs, callbacks.
WITH owned AS (
    SELECT worker AS id, 1 AS run, 0 AS callback
      FROM {schema}.runs
     WHERE state = 'running' AND namespace = CAST(:namespace AS text)
     UNION ALL
    SELECT callback_worker, 0, 1
      FROM {schema}.runs
     WHERE callback_worker IS NOT NULL AND namespace = CAST(:namespace AS text)
)
SELECT id, sum(run) AS runs, sum(callback) AS callbacks
  FROM owned
 GROUP BY id
 ORDER BY id;
