-- Read one run.
-- In:  namespace, id, now (us UTC)
-- Out: everything the row says; instants in us UTC.
SELECT r.id, r.action, r.queue, r.on_complete, r.priority, r.state, r.attempt, r.failures, r.worker, r.created_at, r.due_at,
       r.first_started_at, r.started_at, r.completed_at, r.callback_state, r.callback_tries, r.callback_error, r.callback_traceback,
       r.idempotency_key, r.options, r.progress, r.progress_message, r.error_type, r.error, r.result, r.context, r.args,
       r.due_at <= CAST(:now AS INTEGER) AS is_due
  FROM action_retrier_runs AS r
 WHERE r.id = CAST(:id AS TEXT) AND r.namespace = CAST(:namespace AS TEXT);
