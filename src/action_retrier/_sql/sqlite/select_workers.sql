-- List the workers of a namespace.
-- In:  namespace
-- Out: id, host, pid, started_at (us UTC), actions, mutations, queues (JSON arrays; queues NULL = all).
SELECT id, host, pid, started_at, actions, mutations, queues
  FROM action_retrier_workers
 WHERE namespace = CAST(:namespace AS TEXT)
 ORDER BY started_at, id;
