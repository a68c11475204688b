-- Forget a worker that has stopped or died. Whatever it executed has been settled in the same transaction.
-- In:  id
-- Out: the id; no row when somebody else was faster.
DELETE FROM action_retrier_workers WHERE id = CAST(:id AS TEXT) RETURNING id;
