-- The first schema: runs, their attempts, and the workers that execute them.
-- In:  nothing
-- Out: nothing
-- Instants are integer microseconds since the epoch, UTC. Payloads are JSON text. Partial
-- indexes cover live work only, so that completed rows cost claims nothing.

-- About the schema itself: its version, and an id by which handles on this database are told from others.
CREATE TABLE action_retrier_meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE action_retrier_runs (
    id               TEXT    NOT NULL PRIMARY KEY,
    namespace        TEXT    NOT NULL,
    action           TEXT    NOT NULL,
    queue            TEXT    NOT NULL,
    on_complete      TEXT    NOT NULL DEFAULT '', -- '' = no callback, so that lanes compare without NULL
    priority         INTEGER NOT NULL,
    state            TEXT    NOT NULL
                     CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'canceled')),
    attempt          INTEGER NOT NULL DEFAULT 0,  -- the current attempt, the fencing token; never reused
    failures         INTEGER NOT NULL DEFAULT 0,  -- since the last start
    losses           INTEGER NOT NULL DEFAULT 0,  -- attempts in a row that died with their worker
    worker           TEXT,                        -- who executes, or executed, the current attempt
    created_at       INTEGER NOT NULL,
    due_at           INTEGER NOT NULL,
    deadline_at      INTEGER,
    first_started_at INTEGER,                     -- first attempt since the last start
    started_at       INTEGER,                     -- the current attempt
    completed_at     INTEGER,
    callback_state   TEXT    NOT NULL DEFAULT 'none'
                     CHECK (callback_state IN ('none', 'pending', 'done')),
    callback_tries   INTEGER NOT NULL DEFAULT 0,
    callback_losses  INTEGER NOT NULL DEFAULT 0,
    callback_due_at  INTEGER,
    callback_worker  TEXT,                        -- who is calling back now
    callback_error   TEXT,
    callback_traceback TEXT,
    idempotency_key  TEXT,
    options          TEXT    NOT NULL,
    progress         REAL,
    progress_message TEXT,
    error_type       TEXT,
    error            TEXT,
    result           TEXT,
    context          TEXT,
    args             TEXT    NOT NULL,
    CHECK ((completed_at IS NULL) = (state IN ('pending', 'running'))),
    CHECK (callback_state = 'none' OR (completed_at IS NOT NULL AND on_complete <> ''))
);

-- What may be claimed, a lane (namespace, queue, action, on_complete, priority) after the other.
CREATE INDEX action_retrier_runs_lanes
    ON action_retrier_runs (namespace, queue, action, on_complete, priority, due_at)
 WHERE state = 'pending' AND losses = 0;

-- The lanes that hold anything, found by seeking from one to the next (a loose index scan): the
-- cost is by the lane, not by the run. In SQLite a row comparison (a, b) > (x, y) seeks by its
-- first column only, hence an arm for each.
CREATE VIEW action_retrier_lanes AS
WITH RECURSIVE lanes (namespace, queue, action, on_complete, priority) AS (
    SELECT * FROM (
        SELECT namespace, queue, action, on_complete, priority
          FROM action_retrier_runs
         WHERE state = 'pending' AND losses = 0
         ORDER BY namespace, queue, action, on_complete, priority
         LIMIT 1)
     UNION ALL
    SELECT following.namespace, following.queue, following.action, following.on_complete, following.priority
      FROM lanes AS l
      JOIN action_retrier_runs AS following
        ON following.rowid = coalesce(
           (SELECT r.rowid FROM action_retrier_runs AS r
             WHERE r.state = 'pending' AND r.losses = 0
               AND r.namespace = l.namespace AND r.queue = l.queue AND r.action = l.action AND r.on_complete = l.on_complete AND r.priority > l.priority
             ORDER BY r.priority LIMIT 1),
           (SELECT r.rowid FROM action_retrier_runs AS r
             WHERE r.state = 'pending' AND r.losses = 0
               AND r.namespace = l.namespace AND r.queue = l.queue AND r.action = l.action AND r.on_complete > l.on_complete
             ORDER BY r.on_complete, r.priority LIMIT 1),
           (SELECT r.rowid FROM action_retrier_runs AS r
             WHERE r.state = 'pending' AND r.losses = 0
               AND r.namespace = l.namespace AND r.queue = l.queue AND r.action > l.action
             ORDER BY r.action, r.on_complete, r.priority LIMIT 1),
           (SELECT r.rowid FROM action_retrier_runs AS r
             WHERE r.state = 'pending' AND r.losses = 0
               AND r.namespace = l.namespace AND r.queue > l.queue
             ORDER BY r.queue, r.action, r.on_complete, r.priority LIMIT 1),
           (SELECT r.rowid FROM action_retrier_runs AS r
             WHERE r.state = 'pending' AND r.losses = 0
               AND r.namespace > l.namespace
             ORDER BY r.namespace, r.queue, r.action, r.on_complete, r.priority LIMIT 1))
)
SELECT namespace, queue, action, on_complete, priority FROM lanes;

-- Runs whose last attempt died with its worker: few, and claimed apart.
CREATE INDEX action_retrier_runs_suspects
    ON action_retrier_runs (namespace, due_at)
 WHERE state = 'pending' AND losses > 0;

CREATE INDEX action_retrier_runs_deadlines
    ON action_retrier_runs (namespace, deadline_at)
 WHERE state = 'pending' AND deadline_at IS NOT NULL;

CREATE INDEX action_retrier_runs_running
    ON action_retrier_runs (worker)
 WHERE state = 'running';

CREATE INDEX action_retrier_runs_callbacks
    ON action_retrier_runs (namespace, on_complete, callback_due_at)
 WHERE callback_state = 'pending';

CREATE INDEX action_retrier_runs_callers
    ON action_retrier_runs (callback_worker)
 WHERE callback_worker IS NOT NULL;

CREATE UNIQUE INDEX action_retrier_runs_keys
    ON action_retrier_runs (namespace, action, idempotency_key)
 WHERE idempotency_key IS NOT NULL;

CREATE INDEX action_retrier_runs_completed
    ON action_retrier_runs (completed_at)
 WHERE completed_at IS NOT NULL;

-- For people, who ask for these among millions that succeeded.
CREATE INDEX action_retrier_runs_unsuccessful
    ON action_retrier_runs (namespace, state)
 WHERE state IN ('failed', 'canceled');

-- Attempts that did not succeed. A success is told by its run's own row.
CREATE TABLE action_retrier_attempts (
    run_id     TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    worker     TEXT,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    error_type TEXT    NOT NULL,
    error      TEXT    NOT NULL,
    traceback  TEXT,
    delay      INTEGER,                           -- microseconds until the next one was due; NULL = none followed
    PRIMARY KEY (run_id, number)
) WITHOUT ROWID;

-- One row an incarnation of a worker. Its lease is not here but in its lock file.
CREATE TABLE action_retrier_workers (
    id         TEXT    NOT NULL PRIMARY KEY,
    namespace  TEXT    NOT NULL,
    started_at INTEGER NOT NULL,
    host       TEXT    NOT NULL,
    pid        INTEGER NOT NULL,
    actions    TEXT    NOT NULL,                  -- JSON array of names it can run
    mutations  TEXT    NOT NULL,                  -- JSON array of names it can call back
    queues     TEXT                               -- JSON array; NULL = all
) WITHOUT ROWID;
