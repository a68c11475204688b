-- Tell when the next thing that a worker can do is due.
-- In:  namespace, actions, mutations, queues, max_losses (as for claim_suspects and claim_callbacks),
--      lanes (JSON array of {queue, action, on_complete, priority, since (us UTC)}: look only there, and at nothing that
--      fell due earlier; NULL = everywhere), now (us UTC)
-- Out: lanes (JSON: where runs are pending, since when the first one is due), and runs_in, suspects_in, callbacks_in,
--      deadlines_in (us from now, negative = overdue; NULL = nothing waits; the last three only if lanes is NULL).
WITH lanes AS MATERIALIZED (
    SELECT l.queue, l.action, l.on_complete, l.priority, 0 AS since
      FROM action_retrier_lanes AS l
     WHERE CAST(:lanes AS TEXT) IS NULL
       AND l.namespace = CAST(:namespace AS TEXT)
       AND (CAST(:queues AS TEXT) IS NULL OR l.queue IN (SELECT value FROM json_each(CAST(:queues AS TEXT))))
       AND l.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT)))
       AND (l.on_complete = '' OR l.on_complete IN (SELECT value FROM json_each(CAST(:mutations AS TEXT))))
     UNION ALL
    SELECT json_extract(value, '$.queue'), json_extract(value, '$.action'), json_extract(value, '$.on_complete'),
           json_extract(value, '$.priority'), json_extract(value, '$.since')
      FROM json_each(CAST(:lanes AS TEXT))
), heads AS MATERIALIZED (
    SELECT l.queue, l.action, l.on_complete, l.priority,
           (SELECT min(due.due_at) FROM action_retrier_runs AS due
             WHERE due.state = 'pending' AND due.losses = 0 AND due.namespace = CAST(:namespace AS TEXT)
               AND due.queue = l.queue AND due.action = l.action AND due.on_complete = l.on_complete
               AND due.priority = l.priority AND due.due_at >= l.since) AS since
      FROM lanes AS l
)
SELECT (SELECT json_group_array(json_object('queue', h.queue, 'action', h.action, 'on_complete', h.on_complete,
                                            'priority', h.priority, 'since', h.since))
          FROM heads AS h WHERE h.since IS NOT NULL) AS lanes,
       (SELECT min(h.since) FROM heads AS h) - CAST(:now AS INTEGER) AS runs_in,
       (SELECT min(r.due_at) FROM action_retrier_runs AS r
         WHERE CAST(:lanes AS TEXT) IS NULL AND r.state = 'pending' AND r.losses > 0 AND r.namespace = CAST(:namespace AS TEXT)
           AND r.losses <= CAST(:max_losses AS INTEGER)
           AND (CAST(:queues AS TEXT) IS NULL OR r.queue IN (SELECT value FROM json_each(CAST(:queues AS TEXT))))
           AND r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT)))
           AND (r.on_complete = '' OR r.on_complete IN (SELECT value FROM json_each(CAST(:mutations AS TEXT))))
       ) - CAST(:now AS INTEGER) AS suspects_in,
       (SELECT min((SELECT min(c.callback_due_at) FROM action_retrier_runs AS c
                     WHERE c.callback_state = 'pending' AND c.namespace = CAST(:namespace AS TEXT)
                       AND c.on_complete = known.value AND c.callback_worker IS NULL
                       AND c.callback_losses <= CAST(:max_losses AS INTEGER)))
          FROM json_each(CAST(:mutations AS TEXT)) AS known WHERE CAST(:lanes AS TEXT) IS NULL) - CAST(:now AS INTEGER) AS callbacks_in,
       (SELECT min(r.deadline_at) FROM action_retrier_runs AS r
         WHERE CAST(:lanes AS TEXT) IS NULL AND r.state = 'pending' AND r.namespace = CAST(:namespace AS TEXT)
           AND r.deadline_at IS NOT NULL) - CAST(:now AS INTEGER) AS deadlines_in;
