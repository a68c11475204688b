-- List runs, newest first.
-- In:  namespace, state, actions (JSON array), queue, callback (NULL = any), before (id of the last one seen, or NULL),
--      count (at most), now (us UTC)
-- Out: everything the row says; instants in us UTC.
-- What is rare among millions is found through the partial index that covers it. All else walks from the
-- newest run on, which is quick where much of what it meets is wanted.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), rare AS MATERIALIZED (
    SELECT r.id FROM {schema}.runs AS r
     WHERE r.namespace = CAST(:namespace AS text)
       AND r.state IN ('failed', 'canceled') AND r.state = CAST(:state AS text)
     UNION ALL
    SELECT r.id FROM {schema}.runs AS r
     WHERE CAST(:state AS text) = 'running' AND r.namespace = CAST(:namespace AS text) AND r.state = 'running'
     UNION ALL
    SELECT r.id FROM {schema}.runs AS r
     WHERE CAST(:state AS text) IS NULL AND CAST(:callback AS text) = 'pending'
       AND r.namespace = CAST(:namespace AS text) AND r.callback_state = 'pending'
), chosen AS MATERIALIZED (
    (SELECT r.id
       FROM {schema}.runs AS r
      WHERE coalesce(CAST(:state AS text) IN ('pending', 'succeeded'),
                     CAST(:callback AS text) IS DISTINCT FROM 'pending')
        AND r.namespace = CAST(:namespace AS text)
        AND (CAST(:state AS text) IS NULL OR r.state = CAST(:state AS text))
        AND (CAST(:actions AS text) IS NULL OR r.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json))))
        AND (CAST(:queue AS text) IS NULL OR r.queue = CAST(:queue AS text))
        AND (CAST(:callback AS text) IS NULL OR r.callback_state = CAST(:callback AS text))
        AND r.id < coalesce(CAST(:before AS text), 'g') -- every id begins with a hexadecimal digit
      ORDER BY r.id DESC
      LIMIT CAST(:count AS bigint))
     UNION ALL
    SELECT id FROM rare
)
SELECT r.id, r.action, r.queue, r.on_complete, r.priority, r.state, r.attempt, r.failures, r.worker, r.created_at, r.due_at,
       r.first_started_at, r.started_at, r.completed_at, r.callback_state, r.callback_tries, r.callback_error, r.callback_traceback,
       r.idempotency_key, r.options, r.progress, r.progress_message, r.error_type, r.error, r.result, r.context, r.args,
       r.due_at <= clock.now AS is_due
  FROM clock
 CROSS JOIN chosen
  JOIN {schema}.runs AS r ON r.id = chosen.id
 WHERE r.id < coalesce(CAST(:before AS text), 'g')
   AND (CAST(:actions AS text) IS NULL OR r.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json))))
   AND (CAST(:queue AS text) IS NULL OR r.queue = CAST(:queue AS text))
   AND (CAST(:callback AS text) IS NULL OR r.callback_state = CAST(:callback AS text))
 ORDER BY r.id DESC
 LIMIT CAST(:count AS bigint);
