-- Take due runs for a worker: by priority, then by due time.
-- In:  namespace, worker, actions, mutations (JSON arrays of the names it knows), queues (JSON array; NULL = all),
--      lanes (JSON array of {queue, action, on_complete, priority, since (us UTC)}: look only there, and at nothing that
--      fell due earlier; NULL = everywhere), count (at most), now (us UTC)
-- Out: what an attempt needs to know of its run; no rows either when nothing is due or when the
--      worker's own row is gone.
-- One seek a lane: neither a million runs scheduled for later nor as many of an unknown action are looked at.
-- PostgreSQL has SKIP LOCKED here; SQLite has one writer.
WITH lanes AS MATERIALIZED (
    SELECT l.queue, l.action, l.on_complete, l.priority, 0 AS since
      FROM action_retrier_lanes AS l
     WHERE CAST(:lanes AS TEXT) IS NULL
       AND l.namespace = CAST(:namespace AS TEXT)
       AND (CAST(:queues AS TEXT) IS NULL OR l.queue IN (SELECT value FROM json_each(CAST(:queues AS TEXT))))
       AND l.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT)))
       AND (l.on_complete = '' OR l.on_complete IN (SELECT value FROM json_each(CAST(:mutations AS TEXT))))
     UNION ALL
    SELECT json_extract(value, '$.queue'), json_extract(value, '$.action'), json_extract(value, '$.on_complete'),
           json_extract(value, '$.priority'), json_extract(value, '$.since')
      FROM json_each(CAST(:lanes AS TEXT))
), chosen AS MATERIALIZED (
    SELECT r.rowid AS row
      FROM lanes AS l
     CROSS JOIN action_retrier_runs AS r
     WHERE r.rowid IN (
           SELECT due.rowid FROM action_retrier_runs AS due
            WHERE due.state = 'pending' AND due.losses = 0 AND due.namespace = CAST(:namespace AS TEXT)
              AND due.queue = l.queue AND due.action = l.action AND due.on_complete = l.on_complete
              AND due.priority = l.priority
              AND due.due_at BETWEEN l.since AND CAST(:now AS INTEGER)
              AND (due.deadline_at IS NULL OR due.deadline_at > CAST(:now AS INTEGER))
            ORDER BY due.due_at
            LIMIT CAST(:count AS INTEGER))
     ORDER BY r.priority DESC, r.due_at, r.id
     LIMIT CAST(:count AS INTEGER)
)
UPDATE action_retrier_runs
   SET state = 'running', attempt = attempt + 1, worker = CAST(:worker AS TEXT), started_at = CAST(:now AS INTEGER),
       first_started_at = coalesce(first_started_at, CAST(:now AS INTEGER)), progress = NULL, progress_message = NULL
 WHERE rowid IN (SELECT row FROM chosen)
   AND EXISTS (SELECT 1 FROM action_retrier_workers WHERE id = CAST(:worker AS TEXT))
RETURNING id, queue, action, attempt, failures, losses, on_complete, options, args, context, due_at, priority,
          deadline_at - CAST(:now AS INTEGER) AS deadline_in;
