-- Take due runs for a worker: by priority, then by due time.
-- In:  namespace, worker, actions, mutations (JSON arrays of the names it knows), queues (JSON array; NULL = all),
--      lanes (JSON array of {queue, action, on_complete, priority, since (us UTC)}: look only there, and at nothing that
--      fell due earlier; NULL = everywhere), count (at most), now (us UTC)
-- Out: what an attempt needs to know of its run; no rows either when nothing is due or when the
--      worker's own row is gone.
-- One seek a lane: neither a million runs scheduled for later nor as many of an unknown action are looked at.
-- While somebody's transaction stays open, rows that were claimed long ago leave their entries in the index, and each
-- seek would walk over all of them: hence since.
-- By an array, and not by a join: a plan that is kept cannot read the whole table then, however young that was.
-- MATERIALIZED, or the planner may run the choice again for each row, and ignore its LIMIT.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), lanes AS MATERIALIZED (
    SELECT l.queue, l.action, l.on_complete, l.priority, CAST(0 AS bigint) AS since
      FROM {schema}.lanes AS l
     WHERE CAST(:lanes AS text) IS NULL
       AND l.namespace = CAST(:namespace AS text)
       AND (CAST(:queues AS text) IS NULL OR l.queue IN (SELECT value FROM json_array_elements_text(CAST(:queues AS json))))
       AND l.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json)))
       AND (l.on_complete = '' OR l.on_complete IN (SELECT value FROM json_array_elements_text(CAST(:mutations AS json))))
     UNION ALL
    SELECT one.queue, one.action, one.on_complete, one.priority, one.since
      FROM json_to_recordset(CAST(:lanes AS json)) AS one (
           queue text, action text, on_complete text, priority bigint, since bigint)
), due AS MATERIALIZED (
    SELECT one.id
      FROM lanes AS l
     CROSS JOIN LATERAL (
           SELECT d.id, d.priority, d.due_at
             FROM {schema}.runs AS d
            WHERE d.state = 'pending' AND d.losses = 0 AND d.namespace = CAST(:namespace AS text)
              AND d.queue = l.queue AND d.action = l.action AND d.on_complete = l.on_complete
              AND d.priority = l.priority
              AND d.due_at BETWEEN l.since AND (SELECT now FROM clock)
              AND (d.deadline_at IS NULL OR d.deadline_at > (SELECT now FROM clock))
            ORDER BY d.due_at
            LIMIT CAST(:count AS bigint)
              FOR UPDATE SKIP LOCKED) AS one
     ORDER BY one.priority DESC, one.due_at, one.id
     LIMIT CAST(:count AS bigint)
), chosen AS MATERIALIZED (
    SELECT id FROM due
     WHERE EXISTS (SELECT 1 FROM {schema}.workers AS w
                    WHERE w.id = CAST(:worker AS text)
                      AND w.renewed_at > CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) - 10000000)
)
UPDATE {schema}.runs AS r
   SET state = 'running', attempt = r.attempt + 1, worker = CAST(:worker AS text), started_at = clock.now,
       first_started_at = coalesce(r.first_started_at, clock.now), progress = NULL, progress_message = NULL
  FROM clock
 WHERE r.id = ANY (ARRAY(SELECT id FROM chosen))
RETURNING r.id, r.queue, r.action, r.attempt, r.failures, r.losses, r.on_complete, r.options, r.args, r.context, r.due_at, r.priority,
          r.deadline_at - clock.now AS deadline_in;
