"""DBOS, on PostgreSQL and on SQLite."""

import sys

if len(sys.argv) > 3 and sys.argv[3].startswith("sqlite"):
    import pysqlite3

    sys.modules["sqlite3"] = pysqlite3  # DBOS needs 3.42 or newer, which the system's may not be
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dbos import DBOS, DBOSClient

from benchmarks.protocol import Peer, main, tasks

QUEUE = "bench"
POLL_S = 0.01
CONCURRENCY = 100
VERSION = "bench"


@DBOS.workflow(name="noop")
def noop(value: int) -> None:
    tasks.noop()


@DBOS.step(name="fail_once_step", retries_allowed=True, interval_seconds=0, max_attempts=5)
def fail_once_step(value: int) -> None:
    tasks.fail_once(value)


@DBOS.workflow(name="fail_once")
def fail_once(value: int) -> None:
    fail_once_step(value)


@DBOS.workflow(name="stamp")
def stamp(value: int) -> None:
    tasks.stamp(value)


@DBOS.workflow(name="hang")
def hang(value: int) -> None:
    tasks.hang_thread()


class Dbos(Peer):
    library = "dbos"
    brings = ("sqlalchemy", "psycopg", "pysqlite3-binary")
    imports = "import dbos"
    settings = {  # noqa: RUF012
        "queue": f"worker_concurrency={CONCURRENCY}, polling_interval_sec={POLL_S} (default: 1.0)",
        "retry": "a step with interval_seconds=0: DBOS retries steps, not workflows",
        "many": "enqueue_in_transaction, in one transaction",
        "SQLite": "pysqlite3-binary, since it needs 3.42 or newer",
    }
    lacks = "recovers what its own executor left when that starts again; other hosts only with its Conductor"

    def prepare(self, url: str) -> None:
        self._launch(url)

    def _launch(self, url: str) -> None:
        if getattr(self, "_launched", False):
            return
        self._launched = True
        DBOS(
            config={
                "name": "bench",
                "system_database_url": url,
                "application_version": VERSION,
                "log_level": "CRITICAL",
            }
        )
        DBOS.launch()

    @contextlib.contextmanager
    def client(self, url: str) -> Iterator[Any]:
        DBOS.destroy()  # who enqueues is another program than who works
        dbos = DBOSClient(system_database_url=url)

        class Client:
            def one(self, kind: str, value: int) -> None:
                dbos.enqueue(self._options(kind), value)

            def many(self, kind: str, values: list[int]) -> None:
                with dbos._sys_db.engine.begin() as connection:  # noqa: SLF001 - it hands out no engine
                    for value in values:
                        dbos.enqueue_in_transaction(connection, self._options(kind), value)

            def _options(self, kind: str) -> Any:
                return {"workflow_name": kind, "queue_name": QUEUE, "app_version": VERSION}

        yield Client()
        dbos.destroy()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        # Its tables are there: `fill` and `send` prepare them. Launched after `ready`, since it then begins to recover.
        ready()
        self._launch(url)
        DBOS.register_queue(QUEUE, worker_concurrency=CONCURRENCY, polling_interval_sec=POLL_S)
        threading.Event().wait()

    def left(self, url: str) -> int:
        condition = "FROM {}workflow_status WHERE status IN ('ENQUEUED', 'PENDING', 'DELAYED')"
        if url.startswith("postgres"):
            from benchmarks.peers.looking import any_left  # noqa: PLC0415 - not needed on SQLite

            return any_left(url, condition.format("dbos."))
        import sqlite3  # noqa: PLC0415 - the one chosen above

        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as connection:
            return int(connection.execute(f"SELECT EXISTS (SELECT 1 {condition.format('')})").fetchone()[0])


if __name__ == "__main__":
    main(Dbos)
