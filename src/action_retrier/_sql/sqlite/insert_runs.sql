-- Start runs. A row whose id or idempotency key is there already is left as it is.
-- In:  rows (one after the other: id, action, queue, on_complete, priority, at (us UTC or NULL), delay (us, where at is
--      NULL), deadline (us after due or NULL), key, options, context, args), namespace, now (us UTC), installation (that a
--      handle of the user's has to lead to; NULL where that is known)
-- Out: the rows that were inserted, without RETURNING, which costs a quarter more; none in another database.
INSERT INTO action_retrier_runs
       (id, namespace, action, queue, on_complete, priority, state, created_at,
        due_at,
        deadline_at,
        idempotency_key, options, context, args)
SELECT CAST(:id AS TEXT), CAST(:namespace AS TEXT), CAST(:action AS TEXT), CAST(:queue AS TEXT), CAST(:on_complete AS TEXT),
       CAST(:priority AS INTEGER), 'pending', CAST(:now AS INTEGER),
       max(CAST(:now AS INTEGER), coalesce(CAST(:at AS INTEGER), CAST(:now AS INTEGER) + CAST(:delay AS INTEGER))),
       max(CAST(:now AS INTEGER), coalesce(CAST(:at AS INTEGER), CAST(:now AS INTEGER) + CAST(:delay AS INTEGER)))
           + CAST(:deadline AS INTEGER),
       CAST(:key AS TEXT), CAST(:options AS TEXT), CAST(:context AS TEXT), CAST(:args AS TEXT)
 WHERE CAST(:installation AS TEXT) IS NULL
    OR EXISTS (SELECT 1 FROM action_retrier_meta WHERE key = 'installation' AND value = CAST(:installation AS TEXT))
    ON CONFLICT DO NOTHING;
