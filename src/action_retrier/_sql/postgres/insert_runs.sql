-- Start runs. A row whose id or idempotency key is there already is left as it is.
-- In:  namespace, rows (JSON array of {id, action, queue, on_complete, priority, at (us UTC or null),
--      delay (us, where at is null), deadline (us after due or null), key, options, context, args}), now (us UTC)
-- Out: the ids that were inserted, and is_told (whether somebody was notified).
-- Sleeping workers of other processes are notified, if any has asked for it: a NOTIFY takes a lock that there is one
-- of in the whole database, when its transaction commits. It is looked after once, when the first row has gone in.
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
)
INSERT INTO {schema}.runs
       (id, namespace, action, queue, on_complete, priority, state, created_at, due_at, deadline_at,
        idempotency_key, options, context, args)
SELECT one.id, CAST(:namespace AS text), one.action, one.queue, one.on_complete, one.priority, 'pending', clock.now,
       greatest(clock.now, coalesce(one.at, clock.now + one.delay)),
       greatest(clock.now, coalesce(one.at, clock.now + one.delay)) + one.deadline,
       one.key, one.options, one.context, one.args
  FROM clock
 CROSS JOIN json_to_recordset(CAST(:rows AS json)) AS one (
       id text, action text, queue text, on_complete text, priority bigint, at bigint, delay bigint,
       deadline bigint, key text, options text, context text, args text)
    ON CONFLICT DO NOTHING
RETURNING id, (
       SELECT pg_catalog.pg_notify('{channel}', '')
        WHERE EXISTS (SELECT 1 FROM {schema}.workers WHERE namespace = CAST(:namespace AS text) AND is_idle)
       ) IS NOT NULL AS is_told;
