"""
The floor: the same durable state changes as ours in raw SQL, with nothing around them.

Same tables and indexes, and batches of the size that our worker gets: a batch is one statement on PostgreSQL, one
transaction on SQLite. Nothing is validated, no function is called, no lease is held.
"""

import contextlib
import functools
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from action_retrier.drivers.postgres.schema import migrations as postgres_migrations
from action_retrier.drivers.postgres.urls import parse
from action_retrier.drivers.sqlite.schema import migrations as sqlite_migrations
from action_retrier.drivers.sqlite.schema import split
from benchmarks.protocol import Peer, main, tasks

CLAIMED_AT_ONCE = 500
OPTIONS = json.dumps({"initial_backoff_ms": 250, "base": 2, "max_failures": 4, "jitter": 0.5})
LOOKS_EACH_S = 0.001  # on SQLite, where nobody can be notified

SCHEMA = "action_retrier"
INSERT_ONE = """
INSERT INTO {schema}.runs (id, namespace, action, queue, priority, state, created_at, due_at, options, args)
VALUES (%(id)s, 'default', 'benchmarks:noop', 'default', 0, 'pending', %(now)s, %(now)s, %(options)s, %(args)s)
"""
INSERT = """
INSERT INTO {schema}.runs (id, namespace, action, queue, priority, state, created_at, due_at, options, args)
SELECT one, 'default', 'benchmarks:noop', 'default', 0, 'pending', %(now)s, %(now)s, %(options)s, %(args)s
  FROM unnest(CAST(%(ids)s AS text[])) AS one
"""
CLAIM = """
WITH due AS MATERIALIZED (
    SELECT id FROM {schema}.runs
     WHERE state = 'pending' AND losses = 0 AND namespace = 'default' AND queue = 'default'
       AND action = 'benchmarks:noop' AND on_complete = '' AND priority = 0 AND due_at <= %(now)s
     ORDER BY due_at LIMIT %(count)s FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.runs AS r SET state = 'running', attempt = attempt + 1, worker = 'floor', started_at = %(now)s
  FROM due WHERE r.id = due.id
RETURNING r.id, r.attempt, r.args
"""
FINISH = """
UPDATE {schema}.runs AS r SET state = 'succeeded', completed_at = %(now)s, result = 'null'
  FROM unnest(CAST(%(ids)s AS text[]), CAST(%(attempts)s AS bigint[])) AS done (id, attempt)
 WHERE r.id = done.id AND r.state = 'running' AND r.attempt = done.attempt
"""
LEFT = """
SELECT EXISTS (SELECT 1 FROM {runs} WHERE state = 'pending' AND losses = 0)
    OR EXISTS (SELECT 1 FROM {runs} WHERE state = 'pending' AND losses > 0)
    OR EXISTS (SELECT 1 FROM {runs} WHERE state = 'running')
    OR EXISTS (SELECT 1 FROM {runs} WHERE callback_state = 'pending')
"""
HISTORY = """
INSERT INTO {schema}.runs (id, namespace, action, queue, priority, state, attempt, worker, created_at, due_at,
                           first_started_at, started_at, completed_at, options, result, args)
SELECT '01900000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'), 'default', 'benchmarks:noop', 'default', 0, 'succeeded', 1,
       'history', %(now)s - i * 10000, %(now)s - i * 10000, %(now)s - i * 10000, %(now)s - i * 10000,
       %(now)s - i * 10000 + 500, %(options)s, 'null', '{{}}'
  FROM generate_series(%(count)s, 1, -1) AS i
"""

SQLITE_INSERT = """
INSERT INTO action_retrier_runs (id, namespace, action, queue, priority, state, created_at, due_at, options, args)
VALUES (?, 'default', 'benchmarks:noop', 'default', 0, 'pending', ?, ?, ?, ?)
"""
SQLITE_CLAIM = """
UPDATE action_retrier_runs SET state = 'running', attempt = attempt + 1, worker = 'floor', started_at = ?
 WHERE rowid IN (SELECT rowid FROM action_retrier_runs
                  WHERE state = 'pending' AND losses = 0 AND namespace = 'default' AND queue = 'default'
                    AND action = 'benchmarks:noop' AND on_complete = '' AND priority = 0 AND due_at <= ?
                  ORDER BY due_at LIMIT ?)
RETURNING id, attempt, args
"""
SQLITE_FINISH = """
UPDATE action_retrier_runs SET state = 'succeeded', completed_at = ?, result = 'null'
 WHERE id = ? AND state = 'running' AND attempt = ?
"""
SQLITE_HISTORY = """
WITH RECURSIVE series (i) AS (SELECT :count UNION ALL SELECT i - 1 FROM series WHERE i > 1)
INSERT INTO action_retrier_runs (id, namespace, action, queue, priority, state, attempt, worker, created_at, due_at,
                                 first_started_at, started_at, completed_at, options, result, args)
SELECT printf('01900000-0000-7000-8000-%012x', i), 'default', 'benchmarks:noop', 'default', 0, 'succeeded', 1, 'history',
       :now - i * 10000, :now - i * 10000, :now - i * 10000, :now - i * 10000, :now - i * 10000 + 500, :options, 'null', '{}'
  FROM series
"""


class Floor(Peer):
    imports = ""
    settings = {  # noqa: RUF012
        "worker": f"one loop, {CLAIMED_AT_ONCE} rows a statement (PostgreSQL) or transaction (SQLite)",
        "SQLite": "WAL, synchronous=FULL",
        "latency": f"PostgreSQL: NOTIFY; SQLite: looks each {LOOKS_EACH_S * 1000:g} ms",
    }
    lacks = "no lease, no recovery, no retry, no callback, no validation: bare SQL"

    def prepare(self, url: str) -> None:
        with opened(url) as connection:
            if url.startswith("sqlite"):
                if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                    for text in sqlite_migrations():
                        for statement in split(text):
                            connection.execute(statement)
            elif connection.execute("SELECT to_regnamespace(%s) IS NULL", (SCHEMA,)).fetchone()[0]:
                connection.execute(f"CREATE SCHEMA {SCHEMA}")
                for text in postgres_migrations():
                    connection.execute(text.replace("{schema}", SCHEMA).encode())

    @contextlib.contextmanager
    def client(self, url: str) -> Iterator[Any]:
        with opened(url) as connection:

            class Client:
                def one(self, kind: str, value: int) -> None:
                    self.many(kind, [value])

                def many(self, kind: str, values: list[int]) -> None:
                    args = json.dumps({"sent_ns": values[0]}) if kind == "stamp" else "{}"
                    with transaction(connection) if kind == "stamp" else contextlib.nullcontext():
                        insert(connection, len(values), args)
                        if kind == "stamp" and not isinstance(connection, sqlite3.Connection):
                            connection.execute("NOTIFY floor")

            yield Client()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        with opened(url) as connection:
            if isinstance(connection, psycopg.Connection):
                connection.execute("LISTEN floor")
            ready()
            while True:
                rows = claim(connection)
                for _, _, args in rows:
                    if args == "{}":
                        tasks.noop()
                    else:
                        tasks.stamp(json.loads(args)["sent_ns"])
                if rows:
                    finish(connection, rows)
                elif isinstance(connection, sqlite3.Connection):
                    time.sleep(LOOKS_EACH_S)
                else:
                    list(connection.notifies(timeout=1, stop_after=1))

    def left(self, url: str) -> int:
        return left(url)


@contextlib.contextmanager
def opened(url: str) -> Iterator[Any]:
    with contextlib.closing(connect(url)) as connection:
        yield connection


def connect(url: str) -> Any:
    """Return a connection that commits by itself."""
    if not url.startswith("sqlite"):
        return psycopg.connect(parse(url).conninfo, autocommit=True)
    connection = sqlite3.connect(
        url.removeprefix("sqlite:///"), isolation_level=None, timeout=30, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextlib.contextmanager
def transaction(connection: Any) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE" if isinstance(connection, sqlite3.Connection) else "BEGIN")
    yield
    connection.execute("COMMIT")


def now_us() -> int:
    return time.time_ns() // 1000


def insertion(count: int, args: str = "{}") -> tuple[bytes, dict[str, Any]]:
    """Return PostgreSQL's statement that starts so many runs, and its parameters."""
    given = {"now": now_us(), "options": OPTIONS, "args": args}
    if count == 1:
        return statement(INSERT_ONE), {**given, "id": str(uuid.uuid4())}
    return statement(INSERT), {**given, "ids": [str(uuid.uuid4()) for _ in range(count)]}


@functools.cache
def statement(text: str) -> bytes:
    return text.format(schema=SCHEMA).encode()


def insert(connection: Any, count: int, args: str = "{}") -> None:
    """Start so many runs, in the open transaction or in one of their own."""
    if not isinstance(connection, sqlite3.Connection):
        connection.execute(*insertion(count, args))
        return
    now = now_us()
    rows = [(str(uuid.uuid4()), now, now, OPTIONS, args) for _ in range(count)]
    with contextlib.nullcontext() if connection.in_transaction else transaction(connection):
        if count == 1:
            connection.execute(SQLITE_INSERT, rows[0])
        else:
            connection.executemany(SQLITE_INSERT, rows)


def claim(connection: Any) -> list[Any]:
    now = now_us()
    if not isinstance(connection, sqlite3.Connection):
        given = {"now": now, "count": CLAIMED_AT_ONCE}
        return list(connection.execute(statement(CLAIM), given).fetchall())
    if not connection.execute(LEFT.format(runs="action_retrier_runs")).fetchone()[0]:
        return []  # only looked: nobody else's write waits for it
    with transaction(connection):
        return connection.execute(SQLITE_CLAIM, (now, now, CLAIMED_AT_ONCE)).fetchall()


def finish(connection: Any, rows: list[Any]) -> None:
    now = now_us()
    if not isinstance(connection, sqlite3.Connection):
        given = {"now": now, "ids": [row[0] for row in rows], "attempts": [row[1] for row in rows]}
        connection.execute(statement(FINISH), given)
        return
    with transaction(connection):
        connection.executemany(SQLITE_FINISH, [(now, id_, attempt) for id_, attempt, _ in rows])


_lookers: dict[str, Any] = {}


def left(url: str) -> int:
    """Return 1 if a run or a callback of ours or the floor's has not ended, through a connection that is kept."""
    if url not in _lookers:
        _lookers[url] = connect(url)
    runs = "action_retrier_runs" if url.startswith("sqlite") else f"{SCHEMA}.runs"
    return int(_lookers[url].execute(LEFT.format(runs=runs)).fetchone()[0])


def make_history(url: str, count: int) -> None:
    given = {"now": now_us(), "count": count, "options": OPTIONS}
    with opened(url) as connection:
        if isinstance(connection, sqlite3.Connection):
            connection.execute(SQLITE_HISTORY, given)
        else:
            connection.execute(statement(HISTORY), given)


if __name__ == "__main__":
    main(Floor)
