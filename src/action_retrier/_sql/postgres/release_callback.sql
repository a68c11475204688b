-- Free a callback whose worker is gone.
-- In:  id, worker (the dead one), delay (us), lost (1 if it may have killed the worker, 0 if it was given back), error, now (us UTC)
-- Out: id, is_busy (a row that somebody's open transaction holds: nothing was written, try again).
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), locked AS MATERIALIZED (
    SELECT r.id
      FROM {schema}.runs AS r
     WHERE r.id = CAST(:id AS text) AND r.callback_state = 'pending' AND r.callback_worker = CAST(:worker AS text)
       FOR UPDATE SKIP LOCKED
), written AS (
    UPDATE {schema}.runs AS r
       SET callback_worker = NULL,
           callback_losses = r.callback_losses + CAST(:lost AS bigint),
           callback_tries = r.callback_tries - 1 + CAST(:lost AS bigint),
           callback_error = coalesce(CAST(:error AS text), r.callback_error),
           callback_traceback = CASE WHEN CAST(:error AS text) IS NULL THEN r.callback_traceback END,
           callback_due_at = clock.now + CAST(:delay AS bigint)
      FROM locked, clock
     WHERE r.id = locked.id
    RETURNING r.id
)
SELECT id, false AS is_busy FROM written
 UNION ALL
SELECT r.id, true
  FROM {schema}.runs AS r
 WHERE r.id = CAST(:id AS text) AND r.callback_state = 'pending' AND r.callback_worker = CAST(:worker AS text)
   AND NOT EXISTS (SELECT 1 FROM locked);
