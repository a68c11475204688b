-- Close runs, each only if the attempt that reports still owns it.
-- In:  moves (JSON array of {id, attempt (fencing token), state (terminal), failures, result, error_type, error,
--      callback (none, pending or done), callback_tries, callback_delay (us), callback_error, callback_traceback, callback_losses,
--      progress, progress_message}), now (us UTC)
-- Out: id, attempt, is_busy (a row that somebody's open transaction holds: nothing was written, try again); a missing id
--      was not owned any more, which is not an error.
-- SQLite has one writer, and so nobody who is busy.
-- In the order of the ids, as they are given, so that no two wait for each other. The state is hidden from the planner:
-- by the index of what runs it would walk over all that ran while somebody's transaction stays open.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), moves AS MATERIALIZED (
    SELECT one.*
      FROM json_to_recordset(CAST(:moves AS json)) AS one (
           id text, attempt bigint, state text, failures bigint, result text, error_type text, error text,
           callback text, callback_tries bigint, callback_delay bigint, callback_error text, callback_traceback text, callback_losses bigint,
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
       SET state = locked.state,
           completed_at = clock.now,
           failures = locked.failures,
           losses = 0,
           result = locked.result,
           error_type = locked.error_type,
           error = locked.error,
           callback_state = locked.callback,
           callback_tries = coalesce(locked.callback_tries, 0),
           callback_losses = coalesce(locked.callback_losses, 0),
           callback_due_at = CASE WHEN locked.callback = 'pending' THEN clock.now + coalesce(locked.callback_delay, 0) END,
           callback_error = locked.callback_error,
           callback_traceback = locked.callback_traceback,
           callback_worker = NULL,
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
