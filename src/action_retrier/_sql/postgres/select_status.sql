-- Read what status and wait answer from, and what explains a refusal.
-- In:  namespace, id
-- Out: state, result, error_type, error, callback_state.
SELECT state, result, error_type, error, callback_state, on_complete
  FROM {schema}.runs
 WHERE id = CAST(:id AS text) AND namespace = CAST(:namespace AS text);
