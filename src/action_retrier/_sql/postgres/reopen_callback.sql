-- Take back that a callback is done: it has raised, in the very transaction that says so, and is tried again.
-- In:  id, attempt (whose end it was called for), tries, delay (us), error, traceback, now (us UTC)
-- Out: the id.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
UPDATE {schema}.runs AS r
   SET callback_state = 'pending', callback_tries = CAST(:tries AS bigint), callback_error = CAST(:error AS text),
       callback_traceback = CAST(:traceback AS text),
       callback_due_at = clock.now + CAST(:delay AS bigint)
  FROM clock
 WHERE r.id = CAST(:id AS text) AND r.attempt = CAST(:attempt AS bigint) AND r.callback_state = 'done'
RETURNING r.id;
