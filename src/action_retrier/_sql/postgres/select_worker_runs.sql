-- List what a worker executes.
-- In:  worker, now (us UTC)
-- Out: what settling an attempt needs to know.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
SELECT r.id, r.action, r.attempt, r.failures, r.losses, r.on_complete, r.options, r.deadline_at - clock.now AS deadline_in
  FROM clock
 CROSS JOIN {schema}.runs AS r
 WHERE r.state = 'running' AND r.worker = CAST(:worker AS text)
 ORDER BY r.id;
