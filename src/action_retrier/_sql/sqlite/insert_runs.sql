-- Start runs. A row whose id or idempotency key is there already is left as it is.
-- In:  namespace, runs (JSON array of {id, action, queue, on_complete, priority, at (us UTC or null),
--      delay (us, where at is null), deadline (us after due or null), key, options, context, args}), now (us UTC)
-- Out: the ids that were inserted.
WITH given AS MATERIALIZED (
    SELECT value AS run,
           max(CAST(:now AS INTEGER),
               coalesce(json_extract(value, '$.at'), CAST(:now AS INTEGER) + json_extract(value, '$.delay'))) AS due_at
      FROM json_each(CAST(:runs AS TEXT))
)
INSERT INTO action_retrier_runs
       (id, namespace, action, queue, on_complete, priority, state, created_at, due_at, deadline_at,
        idempotency_key, options, context, args)
SELECT json_extract(run, '$.id'), CAST(:namespace AS TEXT), json_extract(run, '$.action'), json_extract(run, '$.queue'),
       json_extract(run, '$.on_complete'), json_extract(run, '$.priority'), 'pending', CAST(:now AS INTEGER), due_at,
       due_at + json_extract(run, '$.deadline'), json_extract(run, '$.key'), json_extract(run, '$.options'),
       json_extract(run, '$.context'), json_extract(run, '$.args')
  FROM given
 WHERE true -- or the parser takes ON CONFLICT for a join
    ON CONFLICT DO NOTHING
RETURNING id;
