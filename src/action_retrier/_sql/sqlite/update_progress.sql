-- Store how far running attempts say they are, each only if it still owns its run.
-- In:  reports (JSON array of {id, attempt (fencing token), progress, progress_message})
-- Out: nothing.
WITH reports AS MATERIALIZED (
    SELECT json_extract(value, '$.id') AS id, json_extract(value, '$.attempt') AS attempt, value AS report
      FROM json_each(CAST(:reports AS TEXT))
)
UPDATE action_retrier_runs AS r
   SET progress = json_extract(report, '$.progress'), progress_message = json_extract(report, '$.progress_message')
  FROM reports
 WHERE r.id = reports.id AND r.state = 'running' AND r.attempt = reports.attempt;
