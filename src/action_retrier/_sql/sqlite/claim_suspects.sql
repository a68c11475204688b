-- Take due runs whose last attempt died with its worker: they are claimed apart from all others.
-- In:  as for claim_runs, and max_losses (runs with more attempts lost in a row are left)
-- Out: as for claim_runs.
UPDATE action_retrier_runs
   SET state = 'running', attempt = attempt + 1, worker = CAST(:worker AS TEXT), started_at = CAST(:now AS INTEGER),
       first_started_at = coalesce(first_started_at, CAST(:now AS INTEGER)), progress = NULL, progress_message = NULL
 WHERE rowid IN (
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE r.state = 'pending' AND r.losses > 0 AND r.namespace = CAST(:namespace AS TEXT)
          AND r.due_at <= CAST(:now AS INTEGER)
          AND r.losses <= CAST(:max_losses AS INTEGER)
          AND (r.deadline_at IS NULL OR r.deadline_at > CAST(:now AS INTEGER))
          AND (CAST(:queues AS TEXT) IS NULL OR r.queue IN (SELECT value FROM json_each(CAST(:queues AS TEXT))))
          AND r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT)))
          AND (r.on_complete = '' OR r.on_complete IN (SELECT value FROM json_each(CAST(:mutations AS TEXT))))
        ORDER BY r.priority DESC, r.due_at, r.id
        LIMIT CAST(:count AS INTEGER))
   AND EXISTS (SELECT 1 FROM action_retrier_workers WHERE id = CAST(:worker AS TEXT))
RETURNING id, queue, action, attempt, failures, losses, on_complete, options, args, context, due_at, priority,
          deadline_at - CAST(:now AS INTEGER) AS deadline_in;
