-- Tell what became of a transaction whose COMMIT got no answer.
-- In:  xid, server_started, checkpoint (as they were when it began)
-- Out: status ('committed', 'aborted', 'in progress'; NULL = nobody knows: after a crash or a failover ids may be
--      given out again, and a checkpoint since may have been the one at the end of a recovery).
SELECT CASE WHEN CAST(pg_catalog.pg_postmaster_start_time() AS text) = CAST(:server_started AS text)
             AND CAST((pg_catalog.pg_control_checkpoint()).checkpoint_lsn AS text) = CAST(:checkpoint AS text)
            THEN pg_catalog.pg_xact_status(CAST(CAST(:xid AS text) AS xid8)) END AS status;
