-- Read one run.
-- In:  namespace, id, now (us UTC)
-- Out: everything the row says; instants in us UTC.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
SELECT r.id, r.action, r.queue, r.on_complete, r.priority, r.state, r.attempt, r.failures, r.worker, r.created_at, r.due_at,
       r.first_started_at, r.started_at, r.completed_at, r.callback_state, r.callback_tries, r.callback_error, r.callback_traceback,
       r.idempotency_key, r.options, r.progress, r.progress_message, r.error_type, r.error, r.result, r.context, r.args,
       r.due_at <= clock.now AS is_due
  FROM clock
 CROSS JOIN {schema}.runs AS r
 WHERE r.id = CAST(:id AS text) AND r.namespace = CAST(:namespace AS text);
