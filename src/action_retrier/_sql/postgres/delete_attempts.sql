-- Remove the history of runs that have been removed.
-- In:  ids (JSON array)
-- Out: nothing.
DELETE FROM {schema}.attempts WHERE run_id = ANY (ARRAY(SELECT value FROM json_array_elements_text(CAST(:ids AS json))));
