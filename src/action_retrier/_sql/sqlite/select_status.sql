-- Read what status and wait answer from, and what explains a refusal.
-- In:  namespace, id
-- Out: state, result, error_type, error, callback_state.
SELECT state, result, error_type, error, callback_state, on_complete
  FROM action_retrier_runs
 WHERE id = CAST(:id AS TEXT) AND namespace = CAST(:namespace AS TEXT);
