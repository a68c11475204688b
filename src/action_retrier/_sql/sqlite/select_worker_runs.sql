-- List what a worker executes.
-- In:  worker, now (us UTC)
-- Out: what settling an attempt needs to know.
SELECT id, action, attempt, failures, losses, on_complete, options, deadline_at - CAST(:now AS INTEGER) AS deadline_in
  FROM action_retrier_runs
 WHERE state = 'running' AND worker = CAST(:worker AS TEXT)
 ORDER BY id;
