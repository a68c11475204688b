-- Remove the history of runs that have been removed.
-- In:  ids (JSON array)
-- Out: nothing.
DELETE FROM {schema}.attempts WHERE run_id IN (SELECT value FROM json_array_elements_text(CAST(:ids AS json)));
