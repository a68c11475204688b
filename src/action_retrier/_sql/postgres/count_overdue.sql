-- Count the runs that have been due for long, a row a kind of work.
-- In:  namespace, patience (us), now (us UTC)
-- Out: queue, action, on_complete, count, waited (us since the oldest was due).
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), overdue AS (
    SELECT r.queue, r.action, r.on_complete, r.due_at
      FROM {schema}.runs AS r
     WHERE r.state = 'pending' AND r.losses = 0 AND r.namespace = CAST(:namespace AS text)
       AND r.due_at <= (SELECT now FROM clock) - CAST(:patience AS bigint)
     UNION ALL -- two arms, an index each
    SELECT r.queue, r.action, r.on_complete, r.due_at
      FROM {schema}.runs AS r
     WHERE r.state = 'pending' AND r.losses > 0 AND r.namespace = CAST(:namespace AS text)
       AND r.due_at <= (SELECT now FROM clock) - CAST(:patience AS bigint)
)
SELECT queue, action, on_complete, count(*) AS count, (SELECT now FROM clock) - min(due_at) AS waited
  FROM overdue
 GROUP BY queue, action, on_complete
 ORDER BY queue, action, on_complete;
