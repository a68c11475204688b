-- List who owns a run or a callback.
-- In:  namespace
-- Out: id, of workers whose row may be gone.
SELECT worker AS id FROM {schema}.runs
 WHERE state = 'running' AND namespace = CAST(:namespace AS text)
 UNION
SELECT callback_worker FROM {schema}.runs
 WHERE callback_worker IS NOT NULL AND namespace = CAST(:namespace AS text);
