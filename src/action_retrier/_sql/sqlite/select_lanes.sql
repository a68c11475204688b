-- List what waits: one row a lane with something due.
-- In:  namespace, now (us UTC)
-- Out: queue, action, on_complete, due_at (us UTC, of the oldest), waited (us since then).
WITH oldest AS (
    SELECT l.queue, l.action, l.on_complete,
           (SELECT min(due.due_at) FROM action_retrier_runs AS due
             WHERE due.state = 'pending' AND due.losses = 0 AND due.namespace = CAST(:namespace AS TEXT)
               AND due.queue = l.queue AND due.action = l.action AND due.on_complete = l.on_complete
               AND due.priority = l.priority) AS due_at
      FROM action_retrier_lanes AS l
     WHERE l.namespace = CAST(:namespace AS TEXT)
     UNION ALL
    SELECT s.queue, s.action, s.on_complete, s.due_at
      FROM action_retrier_runs AS s
     WHERE s.state = 'pending' AND s.losses > 0 AND s.namespace = CAST(:namespace AS TEXT)
)
SELECT queue, action, on_complete, min(due_at) AS due_at, CAST(:now AS INTEGER) - min(due_at) AS waited
  FROM oldest
 WHERE due_at <= CAST(:now AS INTEGER)
 GROUP BY queue, action, on_complete
 ORDER BY queue, action, on_complete;
