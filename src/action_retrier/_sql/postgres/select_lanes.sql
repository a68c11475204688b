-- List what waits: one row a lane with something due.
-- In:  namespace, now (us UTC)
-- Out: queue, action, on_complete, due_at (us UTC, of the oldest), waited (us since then).
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), oldest AS (
    SELECT l.queue, l.action, l.on_complete, one.due_at
      FROM {schema}.lanes AS l
     CROSS JOIN LATERAL (
           SELECT d.due_at FROM {schema}.runs AS d
            WHERE d.state = 'pending' AND d.losses = 0 AND d.namespace = CAST(:namespace AS text)
              AND d.queue = l.queue AND d.action = l.action AND d.on_complete = l.on_complete
              AND d.priority = l.priority
            ORDER BY d.due_at
            LIMIT 1) AS one
     WHERE l.namespace = CAST(:namespace AS text)
     UNION ALL
    SELECT s.queue, s.action, s.on_complete, s.due_at
      FROM {schema}.runs AS s
     WHERE s.state = 'pending' AND s.losses > 0 AND s.namespace = CAST(:namespace AS text)
)
SELECT queue, action, on_complete, min(due_at) AS due_at, (SELECT now FROM clock) - min(due_at) AS waited
  FROM oldest
 WHERE due_at <= (SELECT now FROM clock)
 GROUP BY queue, action, on_complete
 ORDER BY queue, action, on_complete;
