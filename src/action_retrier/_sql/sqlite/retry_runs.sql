-- Start failed and canceled runs afresh, under the same ids, and make due those that back off.
-- In:  namespace, id (NULL = all that the filters leave), actions (JSON array), queue (NULL = any), backing_off (1 = those too), now (us UTC)
-- Out: the ids.
UPDATE action_retrier_runs
   SET due_at = CAST(:now AS INTEGER),
       deadline_at = CASE state WHEN 'pending' THEN deadline_at
                     ELSE CAST(:now AS INTEGER) + CAST(min(json_extract(options, '$.deadline_ms'), 31536000000000) * 1000
                                                       AS INTEGER) END, -- a thousand years at most, as at the start
       failures = CASE state WHEN 'pending' THEN failures ELSE 0 END,
       losses = CASE state WHEN 'pending' THEN losses ELSE 0 END,
       first_started_at = CASE state WHEN 'pending' THEN first_started_at END,
       started_at = CASE state WHEN 'pending' THEN started_at END,
       error_type = CASE state WHEN 'pending' THEN error_type END,
       error = CASE state WHEN 'pending' THEN error END,
       worker = NULL, completed_at = NULL, result = NULL, progress = NULL, progress_message = NULL,
       callback_state = 'none', callback_tries = 0, callback_losses = 0, callback_due_at = NULL,
       callback_worker = NULL, callback_error = NULL, callback_traceback = NULL,
       state = 'pending'
 WHERE rowid IN (
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE r.id = CAST(:id AS TEXT) AND r.namespace = CAST(:namespace AS TEXT)
        UNION ALL -- two arms, so that one run is a seek, and a bulk looks at its own kind only
       SELECT r.rowid FROM action_retrier_runs AS r
        WHERE CAST(:id AS TEXT) IS NULL AND r.namespace = CAST(:namespace AS TEXT) AND r.state IN ('failed', 'canceled')
          AND (CAST(:actions AS TEXT) IS NULL OR r.action IN (SELECT value FROM json_each(CAST(:actions AS TEXT))))
          AND (CAST(:queue AS TEXT) IS NULL OR r.queue = CAST(:queue AS TEXT)))
   AND callback_state <> 'pending'
   AND (state IN ('failed', 'canceled')
        OR (CAST(:backing_off AS INTEGER) = 1 AND state = 'pending' AND attempt > 0
            AND due_at > CAST(:now AS INTEGER)))
RETURNING id;
