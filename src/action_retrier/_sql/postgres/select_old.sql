-- Find completed runs older than the limit, oldest first. Never one whose callback is pending.
-- In:  namespace, age (us), count (at most), now (us UTC)
-- Out: id.
-- What somebody's open transaction holds is left for another time: nobody else should wait for that one.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
SELECT r.id
  FROM {schema}.runs AS r
 WHERE r.completed_at < (SELECT now FROM clock) - CAST(:age AS bigint) AND r.completed_at IS NOT NULL
   AND r.namespace = CAST(:namespace AS text)
   AND r.callback_state <> 'pending'
 ORDER BY r.completed_at
 LIMIT CAST(:count AS bigint)
   FOR UPDATE SKIP LOCKED;
