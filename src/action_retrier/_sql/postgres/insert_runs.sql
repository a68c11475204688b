-- Start runs. A row whose id or idempotency key is there already is left as it is.
-- In:  namespace, runs (JSON array of {id, action, queue, on_complete, priority, at (us UTC or null),
--      delay (us, where at is null), deadline (us after due or null), key, options, context, args}), now (us UTC)
-- Out: the ids that were inserted.
-- Sleeping workers of other processes are notified, if any has asked for it: a NOTIFY takes a lock that there is one
-- of in the whole database, when its transaction commits.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), given AS MATERIALIZED (
    SELECT one.*, greatest(clock.now, coalesce(one.at, clock.now + one.delay)) AS due_at, clock.now
      FROM clock
     CROSS JOIN json_to_recordset(CAST(:runs AS json)) AS one (
           id text, action text, queue text, on_complete text, priority bigint, at bigint, delay bigint,
           deadline bigint, key text, options text, context text, args text)
), inserted AS (
    INSERT INTO {schema}.runs
           (id, namespace, action, queue, on_complete, priority, state, created_at, due_at, deadline_at,
            idempotency_key, options, context, args)
    SELECT id, CAST(:namespace AS text), action, queue, on_complete, priority, 'pending', now, due_at,
           due_at + deadline, key, options, context, args
      FROM given
        ON CONFLICT DO NOTHING
    RETURNING id
), told AS MATERIALIZED (
    SELECT pg_catalog.pg_notify('{channel}', '')
     WHERE EXISTS (SELECT 1 FROM inserted)
       AND EXISTS (SELECT 1 FROM {schema}.workers WHERE namespace = CAST(:namespace AS text) AND is_idle)
)
SELECT inserted.id FROM inserted LEFT JOIN told ON true;
