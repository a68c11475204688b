-- Give runs back for a later attempt, each only if the attempt that reports still owns it.
-- In:  moves (JSON array of {id, attempt (fencing token), delay (us; 0 keeps the due time), failures, losses,
--      error_type, error (NULL keeps the last one), progress, progress_message}), now (us UTC)
-- Out: as for finish_runs.
WITH moves AS MATERIALIZED (
    SELECT json_extract(value, '$.id') AS id, json_extract(value, '$.attempt') AS attempt, value AS move
      FROM json_each(CAST(:moves AS TEXT))
)
UPDATE action_retrier_runs AS r
   SET state = 'pending',
       worker = NULL,
       due_at = CASE json_extract(move, '$.delay') WHEN 0 THEN due_at
                ELSE CAST(:now AS INTEGER) + json_extract(move, '$.delay') END,
       failures = json_extract(move, '$.failures'),
       losses = json_extract(move, '$.losses'),
       error_type = coalesce(json_extract(move, '$.error_type'), error_type),
       error = coalesce(json_extract(move, '$.error'), error),
       progress = coalesce(json_extract(move, '$.progress'), progress),
       progress_message = coalesce(json_extract(move, '$.progress_message'), progress_message)
  FROM moves
 WHERE r.id = moves.id AND r.state = 'running' AND r.attempt = moves.attempt
RETURNING id, attempt, 0 AS is_busy;
