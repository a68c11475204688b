-- Look whether workers live.
-- In:  workers (JSON array of {id, high, low (halves of the key of its advisory lock)})
-- Out: id, renewed_at (us UTC; NULL = it has no row), silent_for (us), is_direct, is_held (its lock),
--      server_up_for (us; after a restart nobody holds a lock at first).
WITH clock AS MATERIALIZED (
    SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) AS now
), held AS MATERIALIZED (
    SELECT CAST(l.classid AS bigint) AS high, CAST(l.objid AS bigint) AS low
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
       AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
)
SELECT given.id, w.renewed_at, clock.now - w.renewed_at AS silent_for, coalesce(w.is_direct, false) AS is_direct,
       EXISTS (SELECT 1 FROM held WHERE held.high = given.high AND held.low = given.low) AS is_held,
       clock.now - CAST(extract(epoch FROM pg_postmaster_start_time()) * 1000000 AS bigint) AS server_up_for
  FROM clock
 CROSS JOIN json_to_recordset(CAST(:workers AS json)) AS given (id text, high bigint, low bigint)
  LEFT JOIN {schema}.workers AS w ON w.id = given.id;
