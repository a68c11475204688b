-- Count the runs that have been due for long, a row a kind of work.
-- In:  namespace, patience (us), now (us UTC)
-- Out: queue, action, on_complete, count, waited (us since the oldest was due).
WITH overdue AS (
    SELECT queue, action, on_complete, due_at
      FROM action_retrier_runs
     WHERE state = 'pending' AND losses = 0 AND namespace = CAST(:namespace AS TEXT)
       AND due_at <= CAST(:now AS INTEGER) - CAST(:patience AS INTEGER)
     UNION ALL -- two arms, an index each
    SELECT queue, action, on_complete, due_at
      FROM action_retrier_runs
     WHERE state = 'pending' AND losses > 0 AND namespace = CAST(:namespace AS TEXT)
       AND due_at <= CAST(:now AS INTEGER) - CAST(:patience AS INTEGER)
)
SELECT queue, action, on_complete, count(*) AS count, CAST(:now AS INTEGER) - min(due_at) AS waited
  FROM overdue
 GROUP BY queue, action, on_complete
 ORDER BY queue, action, on_complete;
