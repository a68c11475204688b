-- Tell when the next thing that a worker can do is due.
-- In:  namespace, actions, mutations, queues, max_losses (as for claim_runs and claim_suspects),
--      max_callback_losses (as max_losses for claim_callbacks), now (us UTC)
-- Out: runs_in, suspects_in, callbacks_in, deadlines_in (us from now, negative = overdue; NULL = nothing waits).
SELECT (SELECT min((SELECT min(due.due_at) FROM action_retrier_runs AS due
                     WHERE due.state = 'pending' AND due.losses = 0 AND due.namespace = CAST(:namespace AS TEXT)
                       AND due.queue = l.queue AND due.action = l.action AND due.on_complete = l.on_complete
                       AND due.priority = l.priority))
          FROM action_retrier_lanes AS l
         WHERE l.namespace = CAST(:namespace AS TEXT)
           AND (CAST(:queues AS TEXT) IS NULL OR l.queue IN (SELECT value FROM json_each(CAST(:queues AS TEXT))))
           AND l.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT)))
           AND (l.on_complete = '' OR l.on_complete IN (SELECT value FROM json_each(CAST(:mutations AS TEXT))))
       ) - CAST(:now AS INTEGER) AS runs_in,
       (SELECT min(r.due_at) FROM action_retrier_runs AS r
         WHERE r.state = 'pending' AND r.losses > 0 AND r.namespace = CAST(:namespace AS TEXT)
           AND r.losses <= CAST(:max_losses AS INTEGER)
           AND (CAST(:queues AS TEXT) IS NULL OR r.queue IN (SELECT value FROM json_each(CAST(:queues AS TEXT))))
           AND r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT)))
           AND (r.on_complete = '' OR r.on_complete IN (SELECT value FROM json_each(CAST(:mutations AS TEXT))))
       ) - CAST(:now AS INTEGER) AS suspects_in,
       (SELECT min((SELECT min(c.callback_due_at) FROM action_retrier_runs AS c
                     WHERE c.callback_state = 'pending' AND c.namespace = CAST(:namespace AS TEXT)
                       AND c.on_complete = known.value AND c.callback_worker IS NULL
                       AND c.callback_losses <= CAST(:max_callback_losses AS INTEGER)))
          FROM json_each(CAST(:mutations AS TEXT)) AS known) - CAST(:now AS INTEGER) AS callbacks_in,
       (SELECT min(r.deadline_at) FROM action_retrier_runs AS r
         WHERE r.state = 'pending' AND r.namespace = CAST(:namespace AS TEXT)
           AND r.deadline_at IS NOT NULL) - CAST(:now AS INTEGER) AS deadlines_in;
