"""
The floor: the same durable state changes as ours, in raw ``sqlite3``, with nothing around them.

Same tables and indexes, WAL, ``synchronous=FULL``, and batches of the size that our worker gets.
"""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

from action_retrier.drivers.sqlite.schema import migrations, split

OPTIONS = json.dumps({"initial_backoff_ms": 250, "base": 2, "max_failures": 4, "jitter": 0.5})
INSERT = """
INSERT INTO action_retrier_runs (id, namespace, action, queue, priority, state, created_at, due_at, options, args)
VALUES (?, 'default', 'benchmarks:noop', 'default', 0, 'pending', ?, ?, ?, '{}')
"""
CLAIM = """
UPDATE action_retrier_runs SET state = 'running', attempt = attempt + 1, worker = 'floor', started_at = ?
 WHERE rowid IN (SELECT rowid FROM action_retrier_runs
                  WHERE state = 'pending' AND losses = 0 AND namespace = 'default' AND queue = 'default'
                    AND action = 'benchmarks:noop' AND on_complete = '' AND priority = 0 AND due_at <= ?
                  ORDER BY due_at LIMIT ?)
RETURNING id, attempt, args
"""
FINISH = """
UPDATE action_retrier_runs SET state = 'succeeded', completed_at = ?, result = 'null'
 WHERE id = ? AND state = 'running' AND attempt = ?
"""


def open_floor(url: str) -> sqlite3.Connection:
    """Return a connection to a new database with our tables."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    for text in migrations():
        for statement in split(text):
            connection.execute(statement)
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _row() -> tuple[object, ...]:
    now = time.time_ns() // 1000
    return str(uuid.uuid4()), now, now, OPTIONS


def single_starts(url: str, count: int) -> float:
    """Insert one row a transaction. Returns rows per second."""
    connection = open_floor(url)
    began = time.perf_counter()
    for _ in range(count):
        with transaction(connection):
            connection.execute(INSERT, _row())
    seconds = time.perf_counter() - began
    connection.close()
    return count / seconds


def batch_starts(url: str, count: int, batch: int) -> float:
    """Insert *batch* rows a transaction. Returns rows per second."""
    connection = open_floor(url)
    began = time.perf_counter()
    for _ in range(count // batch):
        with transaction(connection):
            connection.executemany(INSERT, [_row() for _ in range(batch)])
    seconds = time.perf_counter() - began
    connection.close()
    return count / seconds


def drain(url: str, count: int, batch: int) -> float:
    """Claim and finish *batch* rows a transaction each. Returns rows per second."""
    connection = open_floor(url)
    with transaction(connection):
        connection.executemany(INSERT, [_row() for _ in range(count)])
    done = 0
    began = time.perf_counter()
    while done < count:
        now = time.time_ns() // 1000
        with transaction(connection):
            rows = connection.execute(CLAIM, (now, now, batch)).fetchall()
        now = time.time_ns() // 1000
        with transaction(connection):
            connection.executemany(FINISH, [(now, id_, attempt) for id_, attempt, _ in rows])
        done += len(rows)
    seconds = time.perf_counter() - began
    connection.close()
    return count / seconds


_READER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
print("ready", flush=True)
seen, wanted = 0, int(sys.argv[2])
while seen < wanted:
    found = connection.execute("SELECT rowid, created_at FROM action_retrier_runs WHERE rowid > ?", (seen,)).fetchall()
    for rowid, created_at in found:
        print(time.time_ns() // 1000 - created_at, flush=True)
        seen = rowid
    if not found:
        time.sleep(0.001)
"""


def latency(url: str, count: int) -> list[float]:
    """Insert a row each 50 ms, which another process looks for each millisecond. Returns milliseconds."""
    connection = open_floor(url)
    process = subprocess.Popen(
        [sys.executable, "-c", _READER, url.removeprefix("sqlite:///"), str(count)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(count):
        time.sleep(0.05)
        with transaction(connection):
            connection.execute(INSERT, _row())
    found = [int(line) / 1000 for line in process.stdout]
    process.wait()
    connection.close()
    return found
