-- Give runs back for a later attempt, each only if the attempt that reports still owns it.
-- In:  moves (JSON array of {id, attempt (fencing token), delay (us; 0 keeps the due time), failures, losses,
--      error_type, error (NULL keeps the last one), progress, progress_message}), now (us UTC)
-- Out: as for finish_runs.
-- In the order of the ids, as they are given, so that no two wait for each other. The state is hidden from the planner:
-- by the index of what runs it would walk over all that ran while somebody's transaction stays open.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), moves AS MATERIALIZED (
    SELECT one.*
      FROM json_to_recordset(CAST(:moves AS json)) AS one (
           id text, attempt bigint, delay bigint, failures bigint, losses bigint, error_type text, error text,
           progress double precision, progress_message text)
), locked AS MATERIALIZED (
    SELECT moves.*
      FROM moves
     CROSS JOIN LATERAL (
           SELECT r.id FROM {schema}.runs AS r
            WHERE r.id = moves.id AND r.attempt = moves.attempt AND r.state || '' = 'running'
              FOR UPDATE SKIP LOCKED) AS one
), written AS (
    UPDATE {schema}.runs AS r
       SET state = 'pending',
           worker = NULL,
           due_at = CASE locked.delay WHEN 0 THEN r.due_at ELSE clock.now + locked.delay END,
           failures = locked.failures,
           losses = locked.losses,
           error_type = coalesce(locked.error_type, r.error_type),
           error = coalesce(locked.error, r.error),
           progress = coalesce(locked.progress, r.progress),
           progress_message = coalesce(locked.progress_message, r.progress_message)
      FROM locked, clock
     WHERE r.id = locked.id
    RETURNING r.id, r.attempt
)
SELECT id, attempt, false AS is_busy FROM written
 UNION ALL
SELECT r.id, r.attempt, true
  FROM {schema}.runs AS r
  JOIN moves ON r.id = moves.id AND r.attempt = moves.attempt AND r.state || '' = 'running'
 WHERE (SELECT count(*) FROM locked) < (SELECT count(*) FROM moves) -- else there is nobody to look for
   AND r.id NOT IN (SELECT id FROM locked);
