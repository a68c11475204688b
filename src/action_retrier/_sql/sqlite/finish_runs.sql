-- Close runs, each only if the attempt that reports still owns it.
-- In:  moves (JSON array of {id, attempt (fencing token), state (terminal), failures, result, error_type, error,
--      callback (none, pending or done), callback_tries, callback_delay (us), callback_error, callback_traceback, callback_losses,
--      progress, progress_message}), now (us UTC)
-- Out: id, attempt, is_busy (never here: there is one writer); a missing id was not owned any more, which is not an error.
WITH moves AS MATERIALIZED (
    SELECT json_extract(value, '$.id') AS id, json_extract(value, '$.attempt') AS attempt, value AS move
      FROM json_each(CAST(:moves AS TEXT))
)
UPDATE action_retrier_runs AS r
   SET state = json_extract(move, '$.state'),
       completed_at = CAST(:now AS INTEGER),
       failures = json_extract(move, '$.failures'),
       losses = 0,
       result = json_extract(move, '$.result'),
       error_type = json_extract(move, '$.error_type'),
       error = json_extract(move, '$.error'),
       callback_state = json_extract(move, '$.callback'),
       callback_tries = coalesce(json_extract(move, '$.callback_tries'), 0),
       callback_losses = coalesce(json_extract(move, '$.callback_losses'), 0),
       callback_due_at = CASE WHEN json_extract(move, '$.callback') = 'pending'
                              THEN CAST(:now AS INTEGER) + coalesce(json_extract(move, '$.callback_delay'), 0) END,
       callback_error = json_extract(move, '$.callback_error'),
       callback_traceback = json_extract(move, '$.callback_traceback'),
       callback_worker = NULL,
       progress = coalesce(json_extract(move, '$.progress'), progress),
       progress_message = coalesce(json_extract(move, '$.progress_message'), progress_message)
  FROM moves
 WHERE r.id = moves.id AND r.state = 'running' AND r.attempt = moves.attempt
RETURNING id, attempt, 0 AS is_busy;
