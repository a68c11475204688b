"""
The floor on PostgreSQL: the same durable state changes as ours, in raw psycopg, with nothing around them.

Same tables and indexes, and batches of the size that our worker gets. Each batch is one statement.
"""

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg

from action_retrier.drivers.postgres.schema import migrations
from action_retrier.drivers.postgres.urls import parse

OPTIONS = json.dumps({"initial_backoff_ms": 250, "base": 2, "max_failures": 4, "jitter": 0.5})
INSERT = """
INSERT INTO {schema}.runs (id, namespace, action, queue, priority, state, created_at, due_at, options, args)
SELECT one, 'default', 'benchmarks:noop', 'default', 0, 'pending', %(now)s, %(now)s, %(options)s, '{{}}'
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


class Floor:
    """A connection to a new schema with our tables."""

    def __init__(self, url: str) -> None:
        target = parse(url)
        self._schema = target.schema
        self.connection = psycopg.connect(target.conninfo, autocommit=True)
        self.connection.execute(f"CREATE SCHEMA {self._schema}".encode())
        for text in migrations():
            self.connection.execute(text.replace("{schema}", self._schema).encode())

    def execute(self, text: str, **parameters: Any) -> psycopg.Cursor[Any]:
        """Run one statement, which commits by itself."""
        given = {"now": time.time_ns() // 1000, **parameters}
        return self.connection.execute(text.format(schema=self._schema).encode(), given)

    def insert(self, count: int) -> None:
        """Insert rows, one statement and transaction."""
        self.execute(INSERT, ids=[str(uuid.uuid4()) for _ in range(count)], options=OPTIONS)


@contextlib.contextmanager
def opened(url: str) -> Iterator[Floor]:
    floor = Floor(url)
    yield floor
    floor.connection.close()


def single_starts(url: str, count: int) -> float:
    """Insert one row a transaction. Returns rows per second."""
    with opened(url) as floor:
        began = time.perf_counter()
        for _ in range(count):
            floor.insert(1)
        return count / (time.perf_counter() - began)


def batch_starts(url: str, count: int, batch: int) -> float:
    """Insert *batch* rows a transaction. Returns rows per second."""
    with opened(url) as floor:
        began = time.perf_counter()
        for _ in range(count // batch):
            floor.insert(batch)
        return count / (time.perf_counter() - began)


def drain(url: str, count: int, batch: int) -> float:
    """Claim and finish *batch* rows a transaction each. Returns rows per second."""
    with opened(url) as floor:
        for _ in range(count // 1000):
            floor.insert(1000)
        done = 0
        began = time.perf_counter()
        while done < count:
            rows = floor.execute(CLAIM, count=batch).fetchall()
            floor.execute(FINISH, ids=[row[0] for row in rows], attempts=[row[1] for row in rows])
            done += len(rows)
        return count / (time.perf_counter() - began)


_LISTENER = """
import psycopg, sys, time
connection = psycopg.connect(sys.argv[1], autocommit=True)
connection.execute("LISTEN benchmarks")
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    for _ in connection.notifies(stop_after=1):
        pass
    (created_at,) = connection.execute(f"SELECT max(created_at) FROM {sys.argv[2]}.runs").fetchone()
    print(time.time_ns() // 1000 - created_at, flush=True)
"""


def latency(url: str, count: int) -> list[float]:
    """Insert a row each 50 ms and notify another process, which reads it. Returns milliseconds."""
    target = parse(url)
    with opened(url) as floor:
        process = subprocess.Popen(
            [sys.executable, "-c", _LISTENER, target.conninfo, target.schema, str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(count):
            time.sleep(0.05)
            with floor.connection.transaction():
                floor.insert(1)
                floor.connection.execute("NOTIFY benchmarks")
        found = [int(line) / 1000 for line in process.stdout]
        process.wait()
    return found
