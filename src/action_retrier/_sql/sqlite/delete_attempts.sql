-- Remove the history of runs that have been removed.
-- In:  ids (JSON array)
-- Out: nothing.
DELETE FROM action_retrier_attempts WHERE run_id IN (SELECT value FROM json_each(CAST(:ids AS TEXT)));
