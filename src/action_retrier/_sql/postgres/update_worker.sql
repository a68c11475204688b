-- Announce what a worker can run now: something has been registered since it began.
-- In:  id, actions, mutations (JSON arrays)
-- Out: the id; no row when it has been taken for dead.
UPDATE {schema}.workers
   SET actions = CAST(:actions AS text), mutations = CAST(:mutations AS text)
 WHERE id = CAST(:id AS text)
RETURNING id;
