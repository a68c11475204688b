-- Free a callback whose worker is gone.
-- In:  id, worker (the dead one), delay (us), lost (1 if it may have killed the worker, 0 if it was given back), error, now (us UTC)
-- Out: id, is_busy (never here: there is one writer).
UPDATE action_retrier_runs
   SET callback_worker = NULL,
       callback_losses = callback_losses + CAST(:lost AS INTEGER),
       callback_tries = callback_tries - 1 + CAST(:lost AS INTEGER),
       callback_error = coalesce(CAST(:error AS TEXT), callback_error),
       callback_traceback = CASE WHEN CAST(:error AS TEXT) IS NULL THEN callback_traceback END,
       callback_due_at = CAST(:now AS INTEGER) + CAST(:delay AS INTEGER)
 WHERE id = CAST(:id AS TEXT) AND callback_state = 'pending' AND callback_worker = CAST(:worker AS TEXT)
RETURNING id, 0 AS is_busy;
