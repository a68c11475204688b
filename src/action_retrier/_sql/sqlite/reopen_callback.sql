-- Take back that a callback is done: it has raised, in the very transaction that says so, and is tried again.
-- In:  id, attempt (whose end it was called for), tries, delay (us), error, traceback, now (us UTC)
-- Out: the id.
UPDATE action_retrier_runs
   SET callback_state = 'pending', callback_tries = CAST(:tries AS INTEGER), callback_error = CAST(:error AS TEXT),
       callback_traceback = CAST(:traceback AS TEXT),
       callback_due_at = CAST(:now AS INTEGER) + CAST(:delay AS INTEGER)
 WHERE id = CAST(:id AS TEXT) AND attempt = CAST(:attempt AS INTEGER) AND callback_state = 'done'
RETURNING id;
