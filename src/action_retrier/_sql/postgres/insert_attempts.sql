-- Record attempts that did not succeed. Sent right after the move that ended them, in its transaction.
-- In:  attempts (JSON array of {id, number, worker, error_type, error, traceback, delay (us or null)}), now (us UTC)
-- Out: nothing.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
INSERT INTO {schema}.attempts (run_id, number, worker, started_at, ended_at, error_type, error, traceback, delay)
SELECT r.id, given.number, given.worker, coalesce(r.started_at, clock.now), clock.now,
       given.error_type, given.error, given.traceback, given.delay
  FROM clock
 CROSS JOIN json_to_recordset(CAST(:attempts AS json)) AS given (
       id text, number bigint, worker text, error_type text, error text, traceback text, delay bigint)
  JOIN {schema}.runs AS r ON r.id = given.id
    ON CONFLICT DO NOTHING;
