-- Forget a worker that has stopped or died. Whatever it executed has been settled in the same transaction.
-- In:  id
-- Out: the id; no row when somebody else was faster.
DELETE FROM {schema}.workers WHERE id = CAST(:id AS text) RETURNING id;
