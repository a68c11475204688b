-- Cancel runs that have not completed. The callback is left to a worker that knows it.
-- In:  namespace, id (NULL = all that the filters leave), actions (JSON array), queue (NULL = any), now (us UTC)
-- Out: id, attempt, worker (NULL unless an attempt was under way).
UPDATE action_retrier_runs
   SET state = 'canceled',
       completed_at = CAST(:now AS INTEGER),
       losses = 0,
       callback_state = CASE on_complete WHEN '' THEN 'none' ELSE 'pending' END,
       callback_due_at = CASE on_complete WHEN '' THEN NULL ELSE CAST(:now AS INTEGER) END,
       callback_tries = 0, callback_losses = 0, callback_error = NULL,
       callback_traceback = NULL
 WHERE rowid IN (
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE r.id = CAST(:id AS TEXT) AND r.namespace = CAST(:namespace AS TEXT)
        UNION ALL -- an arm for each partial index, so that neither one run nor a bulk looks at what has completed
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE CAST(:id AS TEXT) IS NULL AND r.namespace = CAST(:namespace AS TEXT) AND r.state = 'pending' AND r.losses = 0
          AND (CAST(:actions AS TEXT) IS NULL OR r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT))))
          AND (CAST(:queue AS TEXT) IS NULL OR r.queue = CAST(:queue AS TEXT))
        UNION ALL
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE CAST(:id AS TEXT) IS NULL AND r.namespace = CAST(:namespace AS TEXT) AND r.state = 'pending' AND r.losses > 0
          AND (CAST(:actions AS TEXT) IS NULL OR r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT))))
          AND (CAST(:queue AS TEXT) IS NULL OR r.queue = CAST(:queue AS TEXT))
        UNION ALL
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE CAST(:id AS TEXT) IS NULL AND r.namespace = CAST(:namespace AS TEXT) AND r.state = 'running'
          AND (CAST(:actions AS TEXT) IS NULL OR r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT))))
          AND (CAST(:queue AS TEXT) IS NULL OR r.queue = CAST(:queue AS TEXT)))
   AND state IN ('pending', 'running')
RETURNING id, attempt, worker; -- not "worker IS NOT NULL": SQLite 3.40 says 1 for a NULL there
