-- Record attempts that did not succeed. Sent right after the move that ended them, in its transaction.
-- In:  attempts (JSON array of {id, number, worker, error_type, error, traceback, delay (us or null)}), now (us UTC)
-- Out: nothing.
INSERT INTO action_retrier_attempts (run_id, number, worker, started_at, ended_at, error_type, error, traceback, delay)
SELECT r.id, json_extract(given.value, '$.number'), json_extract(given.value, '$.worker'),
       coalesce(r.started_at, CAST(:now AS INTEGER)), CAST(:now AS INTEGER),
       json_extract(given.value, '$.error_type'), json_extract(given.value, '$.error'),
       json_extract(given.value, '$.traceback'), json_extract(given.value, '$.delay')
  FROM json_each(CAST(:attempts AS TEXT)) AS given
  JOIN action_retrier_runs AS r ON r.id = json_extract(given.value, '$.id')
 WHERE true -- or the parser takes ON CONFLICT for a join
    ON CONFLICT DO NOTHING;
