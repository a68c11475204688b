-- Announce an incarnation of a worker; its lease begins.
-- In:  id, namespace, host, pid, actions, mutations, queues (JSON arrays; queues NULL = all), now (us UTC)
-- Out: nothing.
-- The lease is by the server's clock even where a test owns all other time, see renew_worker.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
INSERT INTO {schema}.workers (id, namespace, started_at, host, pid, actions, mutations, queues, renewed_at)
SELECT CAST(:id AS text), CAST(:namespace AS text), clock.now, CAST(:host AS text), CAST(:pid AS bigint),
       CAST(:actions AS text), CAST(:mutations AS text), CAST(:queues AS text),
       CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)
  FROM clock
    ON CONFLICT DO NOTHING;
