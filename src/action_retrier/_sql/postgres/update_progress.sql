-- Store how far running attempts say they are, each only if it still owns its run.
-- In:  reports (JSON array of {id, attempt (fencing token), progress, progress_message})
-- Out: nothing.
WITH reports AS MATERIALIZED (
    SELECT one.*
      FROM json_to_recordset(CAST(:reports AS json)) AS one (
           id text, attempt bigint, progress double precision, progress_message text)
), locked AS MATERIALIZED (
    SELECT r.id
      FROM {schema}.runs AS r
      JOIN reports ON r.id = reports.id AND r.state = 'running' AND r.attempt = reports.attempt
     ORDER BY r.id
       FOR UPDATE OF r SKIP LOCKED
)
UPDATE {schema}.runs AS r
   SET progress = reports.progress, progress_message = reports.progress_message
  FROM locked
  JOIN reports ON reports.id = locked.id
 WHERE r.id = reports.id AND r.state = 'running' AND r.attempt = reports.attempt;
