-- Take callbacks that are due, and count the try before it is made.
-- In:  namespace, worker, mutations (JSON array of the names it knows), count (at most),
--      max_losses (callbacks that cost more workers in a row are left), now (us UTC)
-- Out: what calling back needs to know of the run.
WITH chosen AS MATERIALIZED (
    SELECT r.rowid AS row
      FROM json_each(CAST(:mutations AS TEXT)) AS known
     CROSS JOIN action_retrier_runs AS r
     WHERE r.rowid IN (
           SELECT c.rowid FROM action_retrier_runs AS c
            WHERE c.callback_state = 'pending' AND c.namespace = CAST(:namespace AS TEXT)
              AND c.on_complete = known.value
              AND c.callback_due_at <= CAST(:now AS INTEGER)
              AND c.callback_worker IS NULL
              AND c.callback_losses <= CAST(:max_losses AS INTEGER)
            ORDER BY c.callback_due_at
            LIMIT CAST(:count AS INTEGER))
     ORDER BY r.callback_due_at, r.id
     LIMIT CAST(:count AS INTEGER)
)
UPDATE action_retrier_runs
   SET callback_tries = callback_tries + 1, callback_worker = CAST(:worker AS TEXT)
 WHERE rowid IN (SELECT row FROM chosen)
   AND EXISTS (SELECT 1 FROM action_retrier_workers WHERE id = CAST(:worker AS TEXT))
RETURNING id, on_complete, state, result, error_type, error, context, callback_tries, callback_losses;
