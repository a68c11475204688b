-- Mark a callback as done, if this try still owns it. Sent before the callback is called, in its transaction.
-- In:  id, worker, tries (fencing token)
-- Out: the id; no row when another try owns it, or it has been discarded.
UPDATE {schema}.runs
   SET callback_state = 'done', callback_worker = NULL, callback_due_at = NULL, callback_losses = 0
 WHERE id = CAST(:id AS text) AND callback_state = 'pending'
   AND callback_worker = CAST(:worker AS text) AND callback_tries = CAST(:tries AS bigint)
RETURNING id;
