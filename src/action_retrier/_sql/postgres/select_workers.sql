-- List the workers of a namespace.
-- In:  namespace
-- Out: id, host, pid, started_at (us UTC), actions, mutations, queues (JSON arrays; queues NULL = all),
--      silent_for (us since its lease was renewed, by the server's clock).
SELECT id, host, pid, started_at, actions, mutations, queues,
       CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) - renewed_at AS silent_for
  FROM {schema}.workers
 WHERE namespace = CAST(:namespace AS text)
 ORDER BY started_at, id;
