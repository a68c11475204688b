-- Fail pending runs whose deadline has passed, with their last error.
-- In:  namespace, count (at most), now (us UTC)
-- Out: the ids that were failed.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), late AS MATERIALIZED (
    SELECT d.id
      FROM {schema}.runs AS d
     WHERE d.state = 'pending' AND d.namespace = CAST(:namespace AS text)
       AND d.deadline_at <= (SELECT now FROM clock)
     ORDER BY d.deadline_at
     LIMIT CAST(:count AS bigint)
       FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.runs AS r
   SET state = 'failed',
       completed_at = clock.now,
       error_type = coalesce(r.error_type, 'DeadlineExceeded'),
       error = coalesce(r.error, 'the deadline passed before an attempt began'),
       callback_state = CASE r.on_complete WHEN '' THEN 'none' ELSE 'pending' END,
       callback_due_at = CASE r.on_complete WHEN '' THEN NULL ELSE clock.now END,
       callback_tries = 0, callback_losses = 0, callback_error = NULL,
       callback_traceback = NULL
  FROM clock
 WHERE r.id = ANY (ARRAY(SELECT id FROM late))
RETURNING r.id;
