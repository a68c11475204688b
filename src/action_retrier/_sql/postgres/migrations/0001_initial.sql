-- The first schema: runs, their attempts, and the workers that execute them.
-- In:  nothing
-- Out: nothing
-- Instants are bigint microseconds since the epoch, UTC. Payloads are JSON, kept as text: it comes back as it
-- was written. Partial indexes cover live work only, so that completed rows cost claims nothing, and no index
-- has a column that a heartbeat changes.

-- About the schema itself: its version, and an id by which handles on this database are told from others.
CREATE TABLE {schema}.meta (
    key   text NOT NULL PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE {schema}.runs (
    id               text    COLLATE "C" NOT NULL PRIMARY KEY,
    namespace        text    COLLATE "C" NOT NULL,
    action           text    COLLATE "C" NOT NULL,
    queue            text    COLLATE "C" NOT NULL,
    on_complete      text    COLLATE "C" NOT NULL DEFAULT '', -- '' = no callback, so that lanes compare without NULL
    priority         bigint  NOT NULL,
    state            text    COLLATE "C" NOT NULL
                     CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'canceled')),
    attempt          bigint  NOT NULL DEFAULT 0,  -- the current attempt, the fencing token; never reused
    failures         bigint  NOT NULL DEFAULT 0,  -- since the last start
    losses           bigint  NOT NULL DEFAULT 0,  -- attempts in a row that died with their worker
    worker           text    COLLATE "C",         -- who executes, or executed, the current attempt
    created_at       bigint  NOT NULL,
    due_at           bigint  NOT NULL,
    deadline_at      bigint,
    first_started_at bigint,                      -- first attempt since the last start
    started_at       bigint,                      -- the current attempt
    completed_at     bigint,
    callback_state   text    COLLATE "C" NOT NULL DEFAULT 'none'
                     CHECK (callback_state IN ('none', 'pending', 'done')),
    callback_tries   bigint  NOT NULL DEFAULT 0,
    callback_losses  bigint  NOT NULL DEFAULT 0,
    callback_due_at  bigint,
    callback_worker  text    COLLATE "C",         -- who is calling back now
    callback_error   text,
    callback_traceback text,
    idempotency_key  text    COLLATE "C",
    options          text    NOT NULL,
    progress         double precision,
    progress_message text,
    error_type       text,
    error            text,
    result           text,
    context          text,
    args             text    NOT NULL,
    CHECK ((completed_at IS NULL) = (state IN ('pending', 'running'))),
    CHECK (callback_state = 'none' OR (completed_at IS NOT NULL AND on_complete <> ''))
) WITH (
    -- Each run is updated twice and then rests: leave room for the new versions on its page, and clean up early.
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- What may be claimed, a lane (namespace, queue, action, on_complete, priority) after the other.
CREATE INDEX runs_lanes
    ON {schema}.runs (namespace, queue, action, on_complete, priority, due_at)
 WHERE state = 'pending' AND losses = 0;

-- The lanes that hold anything, found by seeking from one to the next (a loose index scan): the
-- cost is by the lane, not by the run.
CREATE VIEW {schema}.lanes AS
WITH RECURSIVE lanes AS (
    (SELECT namespace, queue, action, on_complete, priority
       FROM {schema}.runs
      WHERE state = 'pending' AND losses = 0
      ORDER BY namespace, queue, action, on_complete, priority
      LIMIT 1)
     UNION ALL
    SELECT following.namespace, following.queue, following.action, following.on_complete, following.priority
      FROM lanes AS l
     CROSS JOIN LATERAL (
           SELECT r.namespace, r.queue, r.action, r.on_complete, r.priority
             FROM {schema}.runs AS r
            WHERE r.state = 'pending' AND r.losses = 0
              AND (r.namespace, r.queue, r.action, r.on_complete, r.priority)
                  > (l.namespace, l.queue, l.action, l.on_complete, l.priority)
            ORDER BY r.namespace, r.queue, r.action, r.on_complete, r.priority
            LIMIT 1) AS following
)
SELECT namespace, queue, action, on_complete, priority FROM lanes;

-- Runs whose last attempt died with its worker: few, and claimed apart.
CREATE INDEX runs_suspects
    ON {schema}.runs (namespace, due_at)
 WHERE state = 'pending' AND losses > 0;

CREATE INDEX runs_deadlines
    ON {schema}.runs (namespace, deadline_at)
 WHERE state = 'pending' AND deadline_at IS NOT NULL;

CREATE INDEX runs_running
    ON {schema}.runs (worker)
 WHERE state = 'running';

CREATE INDEX runs_callbacks
    ON {schema}.runs (namespace, on_complete, callback_due_at)
 WHERE callback_state = 'pending';

CREATE INDEX runs_callers
    ON {schema}.runs (callback_worker)
 WHERE callback_worker IS NOT NULL;

CREATE UNIQUE INDEX runs_keys
    ON {schema}.runs (namespace, action, idempotency_key)
 WHERE idempotency_key IS NOT NULL;

CREATE INDEX runs_completed
    ON {schema}.runs (completed_at)
 WHERE completed_at IS NOT NULL;

-- For people, who ask for these among millions that succeeded.
CREATE INDEX runs_unsuccessful
    ON {schema}.runs (namespace, state)
 WHERE state IN ('failed', 'canceled');

-- Attempts that did not succeed. A success is told by its run's own row.
CREATE TABLE {schema}.attempts (
    run_id     text   COLLATE "C" NOT NULL,
    number     bigint NOT NULL,
    worker     text   COLLATE "C",
    started_at bigint NOT NULL,
    ended_at   bigint NOT NULL,
    error_type text   NOT NULL,
    error      text   NOT NULL,
    traceback  text,
    delay      bigint,                            -- microseconds until the next one was due; NULL = none followed
    PRIMARY KEY (run_id, number)
);

-- One row an incarnation of a worker, and its lease.
CREATE TABLE {schema}.workers (
    id         text   COLLATE "C" NOT NULL PRIMARY KEY,
    namespace  text   COLLATE "C" NOT NULL,
    started_at bigint NOT NULL,
    host       text   NOT NULL,
    pid        bigint NOT NULL,
    actions    text   NOT NULL,                   -- JSON array of names it can run
    mutations  text   NOT NULL,                   -- JSON array of names it can call back
    queues     text,                              -- JSON array; NULL = all
    renewed_at bigint NOT NULL,                   -- the lease: renewed by the heartbeat, judged by the database's clock
    is_direct  boolean NOT NULL DEFAULT false,    -- its session holds its advisory lock: not behind a pooler
    is_idle    boolean NOT NULL DEFAULT false     -- it sleeps, and wants to be notified
) WITH (fillfactor = 50);
