-- Write something, so that its COMMIT tells that earlier ones have reached whatever this server waits for.
-- In:  nothing
-- Out: nothing.
UPDATE {schema}.meta SET value = value WHERE key = 'installation';
