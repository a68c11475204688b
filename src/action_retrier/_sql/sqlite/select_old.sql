-- Find completed runs older than the limit, oldest first. Never one whose callback is pending.
-- In:  namespace, age (us), count (at most), now (us UTC)
-- Out: id.
SELECT id
  FROM action_retrier_runs
 WHERE completed_at < CAST(:now AS INTEGER) - CAST(:age AS INTEGER) AND completed_at IS NOT NULL
   AND namespace = CAST(:namespace AS TEXT)
   AND callback_state <> 'pending'
 ORDER BY completed_at
 LIMIT CAST(:count AS INTEGER);
