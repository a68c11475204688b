-- Take callbacks that are due, and count the try before it is made.
-- In:  namespace, worker, mutations (JSON array of the names it knows), count (at most),
--      max_losses (callbacks that cost more workers in a row are left), now (us UTC)
-- Out: what calling back needs to know of the run.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), due AS MATERIALIZED (
    SELECT one.id
      FROM json_array_elements_text(CAST(:mutations AS json)) AS known (name)
     CROSS JOIN LATERAL (
           SELECT c.id, c.callback_due_at
             FROM {schema}.runs AS c
            WHERE c.callback_state = 'pending' AND c.namespace = CAST(:namespace AS text)
              AND c.on_complete = known.name
              AND c.callback_due_at <= (SELECT now FROM clock)
              AND c.callback_worker IS NULL
              AND c.callback_losses <= CAST(:max_losses AS bigint)
            ORDER BY c.callback_due_at
            LIMIT CAST(:count AS bigint)
              FOR UPDATE SKIP LOCKED) AS one
     ORDER BY one.callback_due_at, one.id
     LIMIT CAST(:count AS bigint)
), chosen AS MATERIALIZED (
    SELECT id FROM due
     WHERE EXISTS (SELECT 1 FROM {schema}.workers AS w
                    WHERE w.id = CAST(:worker AS text)
                      AND w.renewed_at > CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) - 10000000)
)
UPDATE {schema}.runs AS r
   SET callback_tries = r.callback_tries + 1, callback_worker = CAST(:worker AS text)
 WHERE r.id = ANY (ARRAY(SELECT id FROM chosen))
RETURNING r.id, r.on_complete, r.state, r.result, r.error_type, r.error, r.context, r.callback_tries, r.callback_losses;
