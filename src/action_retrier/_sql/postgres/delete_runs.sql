-- Remove completed runs. Their attempts go by delete_attempts, in the same transaction.
-- In:  namespace, ids (JSON array), discard_callback (1 = also where the callback is pending)
-- Out: id, callback_state.
-- A row that somebody else has just changed is judged as its lock found it, see retry_runs.
WITH chosen AS MATERIALIZED (
    SELECT r.id, r.state, r.callback_state
      FROM {schema}.runs AS r
     WHERE r.id = ANY (ARRAY(SELECT value FROM json_array_elements_text(CAST(:ids AS json))))
       AND r.namespace = CAST(:namespace AS text)
     ORDER BY r.id
       FOR UPDATE
)
DELETE FROM {schema}.runs AS r
 USING chosen
 WHERE r.id = chosen.id
   AND chosen.state IN ('succeeded', 'failed', 'canceled')
   AND (chosen.callback_state <> 'pending' OR CAST(:discard_callback AS bigint) = 1)
RETURNING r.id, r.callback_state;
