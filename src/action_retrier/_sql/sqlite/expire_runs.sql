-- Fail pending runs whose deadline has passed, with their last error.
-- In:  namespace, count (at most), now (us UTC)
-- Out: the ids that were failed.
UPDATE action_retrier_runs
   SET state = 'failed',
       completed_at = CAST(:now AS INTEGER),
       error_type = coalesce(error_type, 'DeadlineExceeded'),
       error = coalesce(error, 'the deadline passed before an attempt began'),
       callback_state = CASE on_complete WHEN '' THEN 'none' ELSE 'pending' END,
       callback_due_at = CASE on_complete WHEN '' THEN NULL ELSE CAST(:now AS INTEGER) END,
       callback_tries = 0, callback_losses = 0, callback_error = NULL,
       callback_traceback = NULL
 WHERE rowid IN (
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE r.state = 'pending' AND r.namespace = CAST(:namespace AS TEXT)
          AND r.deadline_at <= CAST(:now AS INTEGER)
        ORDER BY r.deadline_at
        LIMIT CAST(:count AS INTEGER))
RETURNING id;
