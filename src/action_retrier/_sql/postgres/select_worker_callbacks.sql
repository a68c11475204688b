-- List the callbacks that a worker is calling.
-- In:  worker
-- Out: id, callback_tries.
SELECT id, callback_tries
  FROM {schema}.runs
 WHERE callback_worker = CAST(:worker AS text) AND callback_worker IS NOT NULL
 ORDER BY id;
