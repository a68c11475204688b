-- Take due runs whose last attempt died with its worker: they are claimed apart from all others.
-- In:  as for claim_runs, and max_losses (runs with more attempts lost in a row are left)
-- Out: as for claim_runs.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), chosen AS MATERIALIZED (
    SELECT d.id
      FROM {schema}.runs AS d
     WHERE d.state = 'pending' AND d.losses > 0 AND d.namespace = CAST(:namespace AS text)
       AND d.due_at <= (SELECT now FROM clock)
       AND d.losses <= CAST(:max_losses AS bigint)
       AND (d.deadline_at IS NULL OR d.deadline_at > (SELECT now FROM clock))
       AND (CAST(:queues AS text) IS NULL OR d.queue IN (SELECT value FROM json_array_elements_text(CAST(:queues AS json))))
       AND d.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json)))
       AND (d.on_complete = '' OR d.on_complete IN (SELECT value FROM json_array_elements_text(CAST(:mutations AS json))))
       AND EXISTS (SELECT 1 FROM {schema}.workers AS w
                    WHERE w.id = CAST(:worker AS text)
                      AND w.renewed_at > CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) - 10000000)
     ORDER BY d.priority DESC, d.due_at, d.id
     LIMIT CAST(:count AS bigint)
       FOR UPDATE OF d SKIP LOCKED
)
UPDATE {schema}.runs AS r
   SET state = 'running', attempt = r.attempt + 1, worker = CAST(:worker AS text), started_at = clock.now,
       first_started_at = coalesce(r.first_started_at, clock.now), progress = NULL, progress_message = NULL
  FROM clock
 WHERE r.id = ANY (ARRAY(SELECT id FROM chosen))
RETURNING r.id, r.queue, r.action, r.attempt, r.failures, r.losses, r.on_complete, r.options, r.args, r.context, r.due_at, r.priority,
          r.deadline_at - clock.now AS deadline_in;
