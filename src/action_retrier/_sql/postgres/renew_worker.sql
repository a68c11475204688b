-- Prolong a worker's lease.
-- In:  id, is_direct (1 = its session holds its advisory lock)
-- Out: id; no row when it was taken for dead.
-- By the server's clock even where a test owns all other time: a heartbeat is about processes, not about runs.
UPDATE {schema}.workers
   SET renewed_at = CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint),
       is_direct = (CAST(:is_direct AS bigint) = 1)
 WHERE id = CAST(:id AS text)
RETURNING id;
