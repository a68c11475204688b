-- Announce what a worker can run now: something has been registered since it began.
-- In:  id, actions, mutations (JSON arrays)
-- Out: the id; no row when it has been taken for dead.
UPDATE action_retrier_workers
   SET actions = CAST(:actions AS TEXT), mutations = CAST(:mutations AS TEXT)
 WHERE id = CAST(:id AS TEXT)
RETURNING id;
