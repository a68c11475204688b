-- Tell whether a table exists. Never raises for its absence, which would end the user's transaction.
-- In:  name (qualified)
-- Out: is_there.
SELECT to_regclass(CAST(:name AS text)) IS NOT NULL AS is_there;
