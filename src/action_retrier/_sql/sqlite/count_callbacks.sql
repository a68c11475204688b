-- Count the pending callbacks, a row a name, and show the one that has been tried most.
-- In:  namespace, now (us UTC)
-- Out: on_complete, count, waited (us since the oldest was due; negative = due later), failing (how many have raised),
--      tries, id, error (of the one that has been tried most).
-- Beside max() SQLite takes the other columns from the row that has the maximum; elsewhere this needs a window.
SELECT on_complete, count(*) AS count, CAST(:now AS INTEGER) - min(callback_due_at) AS waited,
       count(callback_error) AS failing, max(callback_tries) AS tries, id, callback_error AS error
  FROM action_retrier_runs
 WHERE callback_state = 'pending' AND namespace = CAST(:namespace AS TEXT)
 GROUP BY on_complete
 ORDER BY on_complete;
