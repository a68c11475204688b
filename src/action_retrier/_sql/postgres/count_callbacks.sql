-- Count the pending callbacks, a row a name, and show the one that has been tried most.
-- In:  namespace, now (us UTC)
-- Out: on_complete, count, waited (us since the oldest was due; negative = due later), failing (how many have raised),
--      tries, id, error (of the one that has been tried most).
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), pending AS (
    SELECT r.on_complete, r.callback_due_at, r.callback_error, r.callback_tries, r.id,
           row_number() OVER (PARTITION BY r.on_complete ORDER BY r.callback_tries DESC, r.id) AS place
      FROM {schema}.runs AS r
     WHERE r.callback_state = 'pending' AND r.namespace = CAST(:namespace AS text)
)
SELECT on_complete, count(*) AS count, (SELECT now FROM clock) - min(callback_due_at) AS waited,
       count(callback_error) AS failing, max(callback_tries) AS tries,
       max(id) FILTER (WHERE place = 1) AS id, max(callback_error) FILTER (WHERE place = 1) AS error
  FROM pending
 GROUP BY on_complete
 ORDER BY on_complete;
