-- Read what the database that a handle leads to says about itself. PostgreSQL's handles ask for the installation only.
-- In:  nothing
-- Out: key, value.
SELECT key, value FROM action_retrier_meta;
