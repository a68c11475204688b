-- Tell when the next thing that a worker can do is due.
-- In:  namespace, actions, mutations, queues, max_losses (as for claim_suspects and claim_callbacks),
--      lanes (JSON array of {queue, action, on_complete, priority, since (us UTC)}: look only there, and at nothing that
--      fell due earlier; NULL = everywhere), now (us UTC)
-- Out: lanes (JSON: where runs are pending, since when the first one is due), and runs_in, suspects_in, callbacks_in,
--      deadlines_in (us from now, negative = overdue; NULL = nothing waits; the last three only if lanes is NULL).
WITH clock AS MATERIALIZED (
    SELECT coalesce(CAST(:now AS bigint), CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)) AS now
), lanes AS MATERIALIZED (
    SELECT l.queue, l.action, l.on_complete, l.priority, CAST(0 AS bigint) AS since
      FROM {schema}.lanes AS l
     WHERE CAST(:lanes AS text) IS NULL
       AND l.namespace = CAST(:namespace AS text)
       AND (CAST(:queues AS text) IS NULL OR l.queue IN (SELECT value FROM json_array_elements_text(CAST(:queues AS json))))
       AND l.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json)))
       AND (l.on_complete = '' OR l.on_complete IN (SELECT value FROM json_array_elements_text(CAST(:mutations AS json))))
     UNION ALL
    SELECT one.queue, one.action, one.on_complete, one.priority, one.since
      FROM json_to_recordset(CAST(:lanes AS json)) AS one (
           queue text, action text, on_complete text, priority bigint, since bigint)
), heads AS MATERIALIZED (
    SELECT l.queue, l.action, l.on_complete, l.priority, one.due_at AS since
      FROM lanes AS l
     CROSS JOIN LATERAL (
           SELECT d.due_at FROM {schema}.runs AS d
            WHERE d.state = 'pending' AND d.losses = 0 AND d.namespace = CAST(:namespace AS text)
              AND d.queue = l.queue AND d.action = l.action AND d.on_complete = l.on_complete
              AND d.priority = l.priority AND d.due_at >= l.since
            ORDER BY d.due_at
            LIMIT 1) AS one
)
SELECT (SELECT CAST(json_agg(h) AS text) FROM heads AS h) AS lanes,
       (SELECT min(h.since) FROM heads AS h) - clock.now AS runs_in,
       (SELECT min(d.due_at) FROM {schema}.runs AS d
         WHERE CAST(:lanes AS text) IS NULL AND d.state = 'pending' AND d.losses > 0 AND d.namespace = CAST(:namespace AS text)
           AND d.losses <= CAST(:max_losses AS bigint)
           AND (CAST(:queues AS text) IS NULL OR d.queue IN (SELECT value FROM json_array_elements_text(CAST(:queues AS json))))
           AND d.action IN (SELECT value FROM json_array_elements_text(CAST(:actions AS json)))
           AND (d.on_complete = '' OR d.on_complete IN (SELECT value FROM json_array_elements_text(CAST(:mutations AS json))))
       ) - clock.now AS suspects_in,
       (SELECT min(one.callback_due_at)
          FROM json_array_elements_text(CAST(:mutations AS json)) AS known (name)
         CROSS JOIN LATERAL (
               SELECT c.callback_due_at FROM {schema}.runs AS c
                WHERE c.callback_state = 'pending' AND c.namespace = CAST(:namespace AS text)
                  AND c.on_complete = known.name AND c.callback_worker IS NULL
                  AND c.callback_losses <= CAST(:max_losses AS bigint)
                ORDER BY c.callback_due_at
                LIMIT 1) AS one
         WHERE CAST(:lanes AS text) IS NULL
       ) - clock.now AS callbacks_in,
       (SELECT min(d.deadline_at) FROM {schema}.runs AS d
         WHERE CAST(:lanes AS text) IS NULL AND d.state = 'pending' AND d.namespace = CAST(:namespace AS text)
           AND d.deadline_at IS NOT NULL) - clock.now AS deadlines_in
  FROM clock;
