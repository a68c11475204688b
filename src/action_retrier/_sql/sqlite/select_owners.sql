-- List the workers, and who owns a run or a callback without having a worker's row.
-- In:  namespace
-- Out: id.
SELECT id FROM action_retrier_workers WHERE namespace = CAST(:namespace AS TEXT)
 UNION
SELECT worker FROM action_retrier_runs
 WHERE state = 'running' AND namespace = CAST(:namespace AS TEXT)
 UNION
SELECT callback_worker FROM action_retrier_runs
 WHERE callback_worker IS NOT NULL AND namespace = CAST(:namespace AS TEXT);
