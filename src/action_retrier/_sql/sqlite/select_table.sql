-- Tell whether a table exists. An error for its absence would be harmless here; it is the same question on PostgreSQL.
-- In:  name
-- Out: is_there.
SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = CAST(:name AS TEXT)) AS is_there;
