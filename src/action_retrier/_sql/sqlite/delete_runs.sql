-- Remove completed runs. Their attempts go by delete_attempts, in the same transaction.
-- In:  namespace, ids (JSON array), discard_callback (1 = also where the callback is pending)
-- Out: id, callback_state.
DELETE FROM action_retrier_runs
 WHERE id IN (SELECT value FROM json_each(CAST(:ids AS TEXT)))
   AND namespace = CAST(:namespace AS TEXT)
   AND state IN ('succeeded', 'failed', 'canceled')
   AND (callback_state <> 'pending' OR CAST(:discard_callback AS INTEGER) = 1)
RETURNING id, callback_state;
