-- List the workers, and who owns runs or callbacks without having a worker's row.
-- In:  namespace
-- Out: id.
-- Found by seeking from one owner to the next (a loose index scan): the cost is by the worker, not by the run. All
-- that a worker owns is of its own namespace.
WITH RECURSIVE executing AS (
    (SELECT worker, namespace FROM {schema}.runs WHERE state = 'running' ORDER BY worker LIMIT 1)
     UNION ALL
    SELECT following.worker, following.namespace
      FROM executing AS e
     CROSS JOIN LATERAL (
           SELECT r.worker, r.namespace FROM {schema}.runs AS r
            WHERE r.state = 'running' AND r.worker > e.worker
            ORDER BY r.worker
            LIMIT 1) AS following
), calling AS (
    (SELECT callback_worker, namespace FROM {schema}.runs
      WHERE callback_worker IS NOT NULL ORDER BY callback_worker LIMIT 1)
     UNION ALL
    SELECT following.callback_worker, following.namespace
      FROM calling AS c
     CROSS JOIN LATERAL (
           SELECT r.callback_worker, r.namespace FROM {schema}.runs AS r
            WHERE r.callback_worker IS NOT NULL AND r.callback_worker > c.callback_worker
            ORDER BY r.callback_worker
            LIMIT 1) AS following
)
SELECT id FROM {schema}.workers WHERE namespace = CAST(:namespace AS text)
 UNION
SELECT worker FROM executing WHERE namespace = CAST(:namespace AS text)
 UNION
SELECT callback_worker FROM calling WHERE namespace = CAST(:namespace AS text);
