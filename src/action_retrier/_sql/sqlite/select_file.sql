-- Tell which file a handle leads to, which is all there is to go by before it has tables. PostgreSQL has no files.
-- In:  nothing
-- Out: file; empty for a database in memory.
SELECT file FROM pragma_database_list WHERE name = 'main';
