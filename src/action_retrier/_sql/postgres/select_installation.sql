-- Tell which installation a handle leads to.
-- In:  nothing
-- Out: installation.
SELECT value AS installation FROM {schema}.meta WHERE key = 'installation';
