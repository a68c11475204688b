-- Give a callback that raised back for a later try, if this try still owns it.
-- In:  id, worker, tries (fencing token), delay (us), error, traceback, now (us UTC)
-- Out: the id.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
UPDATE {schema}.runs AS r
   SET callback_worker = NULL, callback_losses = 0, callback_error = CAST(:error AS text),
       callback_traceback = CAST(:traceback AS text),
       callback_due_at = clock.now + CAST(:delay AS bigint)
  FROM clock
 WHERE r.id = CAST(:id AS text) AND r.callback_state = 'pending'
   AND r.callback_worker = CAST(:worker AS text) AND r.callback_tries = CAST(:tries AS bigint)
RETURNING r.id;
