-- Give a callback that raised back for a later try, if this try still owns it.
-- In:  id, worker, tries (fencing token), delay (us), error, traceback, now (us UTC)
-- Out: the id.
UPDATE action_retrier_runs
   SET callback_worker = NULL, callback_losses = 0, callback_error = CAST(:error AS TEXT),
       callback_traceback = CAST(:traceback AS TEXT),
       callback_due_at = CAST(:now AS INTEGER) + CAST(:delay AS INTEGER)
 WHERE id = CAST(:id AS TEXT) AND callback_state = 'pending'
   AND callback_worker = CAST(:worker AS TEXT) AND callback_tries = CAST(:tries AS INTEGER)
RETURNING id;
