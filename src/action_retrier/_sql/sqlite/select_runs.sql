-- List runs, newest first.
-- In:  namespace, state, actions (JSON array), queue, callback (NULL = any), before (id of the last one seen, or NULL),
--      count (at most), now (us UTC)
-- Out: everything the row says; instants in us UTC.
-- What is rare among millions is found through the partial index that covers it. All else walks from the
-- newest run on, which is quick where much of what it meets is wanted.
WITH rare AS MATERIALIZED (
    SELECT r.rowid AS row FROM action_retrier_runs AS r
     WHERE r.namespace = CAST(:namespace AS TEXT)
       AND r.state IN ('failed', 'canceled') AND r.state = CAST(:state AS TEXT)
     UNION ALL
    SELECT r.rowid FROM action_retrier_runs AS r INDEXED BY action_retrier_runs_running
     WHERE CAST(:state AS TEXT) = 'running' AND r.namespace = CAST(:namespace AS TEXT) AND r.state = 'running'
     UNION ALL
    SELECT r.rowid FROM action_retrier_runs AS r
     WHERE CAST(:state AS TEXT) IS NULL AND CAST(:callback AS TEXT) = 'pending'
       AND r.namespace = CAST(:namespace AS TEXT) AND r.callback_state = 'pending'
), chosen AS MATERIALIZED (
    SELECT * FROM (
        SELECT r.rowid AS row
          FROM action_retrier_runs AS r
         WHERE coalesce(CAST(:state AS TEXT) IN ('pending', 'succeeded'), CAST(:callback AS TEXT) IS NOT 'pending')
           AND r.namespace = CAST(:namespace AS TEXT)
           AND (CAST(:state AS TEXT) IS NULL OR r.state = CAST(:state AS TEXT))
           AND (CAST(:actions AS TEXT) IS NULL OR r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT))))
           AND (CAST(:queue AS TEXT) IS NULL OR r.queue = CAST(:queue AS TEXT))
           AND (CAST(:callback AS TEXT) IS NULL OR r.callback_state = CAST(:callback AS TEXT))
           AND r.id < coalesce(CAST(:before AS TEXT), 'g') -- every id begins with a hexadecimal digit
         ORDER BY r.id DESC
         LIMIT CAST(:count AS INTEGER))
     UNION ALL
    SELECT row FROM rare
)
SELECT r.id, r.action, r.queue, r.on_complete, r.priority, r.state, r.attempt, r.failures, r.worker, r.created_at, r.due_at,
       r.first_started_at, r.started_at, r.completed_at, r.callback_state, r.callback_tries, r.callback_error, r.callback_traceback,
       r.idempotency_key, r.options, r.progress, r.progress_message, r.error_type, r.error, r.result, r.context, r.args,
       r.due_at <= CAST(:now AS INTEGER) AS is_due
  FROM chosen
 CROSS JOIN action_retrier_runs AS r ON r.rowid = chosen.row
 WHERE r.id < coalesce(CAST(:before AS TEXT), 'g')
   AND (CAST(:actions AS TEXT) IS NULL OR r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT))))
   AND (CAST(:queue AS TEXT) IS NULL OR r.queue = CAST(:queue AS TEXT))
   AND (CAST(:callback AS TEXT) IS NULL OR r.callback_state = CAST(:callback AS TEXT))
 ORDER BY r.id DESC
 LIMIT CAST(:count AS INTEGER);
