-- Start failed and canceled runs afresh, under the same ids, and make due those that back off.
-- In:  namespace, id (NULL = all that the filters leave), actions (JSON array), queue (NULL = any), backing_off (1 = those too), now (us UTC)
-- Out: the ids.
-- Sleeping workers are notified, see insert_runs. A row that somebody else has just changed is judged as its lock found
-- it: by itself the UPDATE would look at what it was when the statement began.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), chosen AS MATERIALIZED (
    SELECT r.id, r.state, r.callback_state, r.attempt, r.due_at
      FROM {schema}.runs AS r
     WHERE r.namespace = CAST(:namespace AS text)
       AND (r.id = CAST(:id AS text)
            OR (CAST(:id AS text) IS NULL AND r.state IN ('failed', 'canceled')
                AND (CAST(:actions AS text) IS NULL OR r.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json))))
                AND (CAST(:queue AS text) IS NULL OR r.queue = CAST(:queue AS text))))
     ORDER BY r.id
       FOR UPDATE
), changed AS (
    UPDATE {schema}.runs AS r
       SET due_at = clock.now,
           deadline_at = CASE WHEN r.state = 'pending' THEN r.deadline_at
                              WHEN CAST(r.options AS json) ->> 'deadline_ms' IS NOT NULL -- which least() would not mind
                         THEN clock.now + CAST(least(CAST(CAST(r.options AS json) ->> 'deadline_ms' AS double precision),
                                                     31536000000000) * 1000 AS bigint) END, -- a thousand years at most, as at the start
           failures = CASE r.state WHEN 'pending' THEN r.failures ELSE 0 END,
           losses = CASE r.state WHEN 'pending' THEN r.losses ELSE 0 END,
           first_started_at = CASE r.state WHEN 'pending' THEN r.first_started_at END,
           started_at = CASE r.state WHEN 'pending' THEN r.started_at END,
           error_type = CASE r.state WHEN 'pending' THEN r.error_type END,
           error = CASE r.state WHEN 'pending' THEN r.error END,
           worker = NULL, completed_at = NULL, result = NULL, progress = NULL, progress_message = NULL,
           callback_state = 'none', callback_tries = 0, callback_losses = 0, callback_due_at = NULL,
           callback_worker = NULL, callback_error = NULL, callback_traceback = NULL,
           state = 'pending'
      FROM chosen, clock
     WHERE r.id = chosen.id
       AND chosen.callback_state <> 'pending'
       AND (chosen.state IN ('failed', 'canceled')
            OR (CAST(:backing_off AS bigint) = 1 AND chosen.state = 'pending' AND chosen.attempt > 0
                AND chosen.due_at > clock.now))
    RETURNING r.id
), told AS MATERIALIZED (
    SELECT pg_catalog.pg_notify('{channel}', '')
     WHERE EXISTS (SELECT 1 FROM changed)
       AND EXISTS (SELECT 1 FROM {schema}.workers WHERE namespace = CAST(:namespace AS text) AND is_idle)
)
SELECT changed.id FROM changed LEFT JOIN told ON true;
