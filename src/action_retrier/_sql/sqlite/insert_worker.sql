-- Announce an incarnation of a worker.
-- In:  id, namespace, host, pid, actions, mutations, queues (JSON arrays; queues NULL = all), now (us UTC)
-- Out: nothing.
INSERT INTO action_retrier_workers (id, namespace, started_at, host, pid, actions, mutations, queues)
VALUES (CAST(:id AS TEXT), CAST(:namespace AS TEXT), CAST(:now AS INTEGER), CAST(:host AS TEXT), CAST(:pid AS INTEGER),
        CAST(:actions AS TEXT), CAST(:mutations AS TEXT), CAST(:queues AS TEXT));
