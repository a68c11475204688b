-- Tell whether a worker sleeps, and wants to be notified of what is started.
-- In:  id, is_idle (1 or 0)
-- Out: nothing.
UPDATE {schema}.workers SET is_idle = (CAST(:is_idle AS bigint) = 1) WHERE id = CAST(:id AS text);
