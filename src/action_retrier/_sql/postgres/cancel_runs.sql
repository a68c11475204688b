-- Cancel runs that have not completed. The callback is left to a worker that knows it.
-- In:  namespace, id (NULL = all that the filters leave), actions (JSON array), queue (NULL = any), now (us UTC)
-- Out: id, attempt, worker (NULL unless an attempt was under way).
-- Sleeping workers are notified, see insert_runs.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), chosen AS MATERIALIZED (
    SELECT r.id
      FROM {schema}.runs AS r
     WHERE r.namespace = CAST(:namespace AS text)
       AND r.state IN ('pending', 'running')
       AND (r.id = CAST(:id AS text)
            OR (CAST(:id AS text) IS NULL
                AND (CAST(:actions AS text) IS NULL OR r.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json))))
                AND (CAST(:queue AS text) IS NULL OR r.queue = CAST(:queue AS text))))
     ORDER BY r.id
       FOR UPDATE
), changed AS (
    UPDATE {schema}.runs AS r
       SET state = 'canceled',
           completed_at = clock.now,
           losses = 0,
           callback_state = CASE r.on_complete WHEN '' THEN 'none' ELSE 'pending' END,
           callback_due_at = CASE r.on_complete WHEN '' THEN NULL ELSE clock.now END,
           callback_tries = 0, callback_losses = 0, callback_error = NULL,
           callback_traceback = NULL
      FROM chosen, clock
     WHERE r.id = chosen.id AND r.state IN ('pending', 'running')
    RETURNING r.id, r.attempt, r.worker, r.callback_state
), told AS MATERIALIZED (
    SELECT pg_catalog.pg_notify('{channel}', '')
     WHERE EXISTS (SELECT 1 FROM changed WHERE callback_state = 'pending')
       AND EXISTS (SELECT 1 FROM {schema}.workers WHERE namespace = CAST(:namespace AS text) AND is_idle)
)
SELECT changed.id, changed.attempt, changed.worker FROM changed LEFT JOIN told ON true;
