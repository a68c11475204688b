-- Make a transaction that has begun as a reader a writer, before it reads anything that another writer may outdate:
-- SQLite takes the lock when a statement begins that could write, whatever it finds. PostgreSQL has no such lock.
-- In:  nothing
-- Out: no row.
UPDATE action_retrier_meta SET value = value WHERE key IS NULL;
