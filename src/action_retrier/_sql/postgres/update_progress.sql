-- Store how far running attempts say they are, each only if it still owns its run.
-- In:  reports (JSON array of {id, attempt (fencing token), progress, progress_message})
-- Out: nothing.
-- In the order of the ids, as they are given, so that no two wait for each other. The state is hidden from the planner:
-- by the index of what runs it would walk over all that ran while somebody's transaction stays open.
WITH reports AS MATERIALIZED (
    SELECT one.*
      FROM json_to_recordset(CAST(:reports AS json)) AS one (
           id text, attempt bigint, progress double precision, progress_message text)
), locked AS MATERIALIZED (
    SELECT reports.*
      FROM reports
     CROSS JOIN LATERAL (
           SELECT r.id FROM {schema}.runs AS r
            WHERE r.id = reports.id AND r.attempt = reports.attempt AND r.state || '' = 'running'
              FOR UPDATE SKIP LOCKED) AS one
)
UPDATE {schema}.runs AS r
   SET progress = locked.progress, progress_message = locked.progress_message
  FROM locked
 WHERE r.id = locked.id;
