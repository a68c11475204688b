-- Tell whether a table exists, and may be read. Never raises for that, which would end the user's transaction:
-- to_regclass does where the role may not use the schema.
-- In:  name (qualified)
-- Out: is_there, is_readable.
SELECT count(*) > 0 AS is_there,
       coalesce(bool_and(pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                         AND pg_catalog.has_table_privilege(c.oid, 'SELECT')), false) AS is_readable
  FROM pg_catalog.pg_namespace AS n
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid
 WHERE n.nspname = CAST(split_part(CAST(:name AS text), '.', 1) AS name)
   AND c.relname = CAST(split_part(CAST(:name AS text), '.', 2) AS name);
