"""
The stores that the storage tests run on, and one way to speak to them in either colour.

A test says what is done (``store.write(cancel_run, ...)``); whether that is awaited or blocks, and on
which database it happens, is the fixture's parameter.
"""

import asyncio
import atexit
import contextlib
import functools
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, Protocol

import psycopg
import pytest
from psycopg.rows import dict_row

from action_retrier._clock import Clock
from action_retrier._ids import new_run_id, new_worker_id
from action_retrier._lifecycle import Attempted, Finish, Outcome, settle
from action_retrier._ops.claims import ANY_LOSSES, Claimant, Claimed, NextDue, claim_callbacks, claim_runs, next_due
from action_retrier._ops.reads import read_run, read_status, run_of
from action_retrier._ops.reports import CallbackMark, Settled, apply_moves
from action_retrier._ops.starts import Start, start_runs
from action_retrier._ops.workers import recover_worker, register_worker
from action_retrier._policy import RetryPolicy, policy_from_json
from action_retrier._statements import Op, Statement
from action_retrier.drivers import Database, Executor, Transaction, open_database
from action_retrier.drivers.postgres.guarded import BlockingTwin
from action_retrier.results import Run, RunStatus
from action_retrier.testing import ManualClock

from .support import pgbouncer, postgres_server

SYSTEMS = ["sqlite", "postgres"]
"""Database systems; a test of the store runs on each."""
if os.environ.get(pgbouncer.VARIABLE) == "1":
    SYSTEMS.append("pgbouncer")
COLOURS = ["sync", "async"]
NAMESPACE = "default"
LIMIT_S = 30.0
"""How long any single wait may take before its test fails."""
TABLES = ("runs", "attempts", "workers")


class System(Protocol):
    """What tests need of a database system beside the drivers' protocol."""

    url: str

    def open(self, clock: Clock, **options: Any) -> Database:
        """Open the database as one more process would, so to speak."""

    def keep_looking(self) -> None:
        """Look through one connection from now on: who looks after every step would open thousands."""

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return what is committed in one of our tables."""

    def connect(self, **options: Any) -> Any:
        """Open a connection of the user's own, which begins transactions implicitly; the system closes it."""

    def write_note(self, connection: Any, text: str) -> None:
        """Write to the user's own table `notes`, whose texts are unique."""

    def read_notes(self, connection: Any) -> list[str]:
        """Return what a connection sees of it."""

    def notes(self) -> list[str]:
        """Return what is committed in it."""

    def overwrite(self, run_id: str, **columns: Any) -> None:
        """Change a run's row behind our back, as damage would."""

    def writer(self, database: Database) -> Any:
        """Return what writes for *database*, after its turn has come."""

    def waiting(self, database: Database) -> int:
        """Return how many writes wait for their turn on *database*."""

    def waits_for_a_lock(self) -> bool:
        """Tell whether a session waits for the end of somebody else's transaction, as far as that can be seen."""

    def writer_held(self, database: Database) -> AbstractContextManager[None]:
        """Have writes wait for their turn on *database* meanwhile."""

    def close(self) -> None:
        """Close what tests have opened."""


class SqliteSystem:
    """A temporary file is the fake: there is no twin of the SQL in memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.db"
        self.url = f"sqlite:///{self.path}?synchronous=normal"
        self._opened: list[Any] = []
        self._look: sqlite3.Connection | None = None
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE notes (text TEXT NOT NULL UNIQUE)")
            connection.commit()

    def open(self, clock: Clock, **options: Any) -> Database:
        """Open the file; without waiting for the disk, whose loss is not what these tests are about."""
        url = f"sqlite:///{self.path}?synchronous={options.pop('synchronous', 'normal')}"
        database = open_database(url, clock=clock, auto_migrate=options.pop("auto_migrate", True))
        assert not options
        database.open()
        self._opened.append(database)
        return database

    def connect(self, **options: Any) -> sqlite3.Connection:
        """Open a connection of the user's own, usable from any thread."""
        connection = sqlite3.connect(self.path, check_same_thread=False, **options)
        self._opened.append(connection)
        return connection

    def keep_looking(self) -> None:
        """Look through one connection from now on."""
        self._look = self.connect()

    @contextlib.contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        if self._look is not None:
            yield self._look
            return
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            yield connection

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return what is committed in one of our tables."""
        with self._looking() as connection:
            cursor = connection.execute(f"SELECT * FROM action_retrier_{name}")  # noqa: S608
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def write_note(self, connection: sqlite3.Connection, text: str) -> None:
        """Write to the user's own table."""
        connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))

    def read_notes(self, connection: sqlite3.Connection) -> list[str]:
        """Return what a connection sees of it."""
        return [text for (text,) in connection.execute("SELECT text FROM notes")]

    def notes(self) -> list[str]:
        """Return what is committed in it."""
        with self._looking() as connection:
            return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY rowid")]

    def overwrite(self, run_id: str, **columns: Any) -> None:
        """Change a run's row behind our back."""
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            text = f"UPDATE action_retrier_runs SET {changes} WHERE id = :id"  # noqa: S608
            connection.execute(text, {"id": run_id, **columns})

    def writer(self, database: Any) -> Any:
        """Return its writing connection."""
        return database._current_writer

    def waiting(self, database: Any) -> int:
        """Return how many writes wait for the writing connection."""
        return len(database._writer._queue)

    def waits_for_a_lock(self) -> bool:
        """Do not wait for it: whoever has begun to write while somebody else does will wait."""
        return True

    @contextlib.contextmanager
    def writer_held(self, database: Database) -> Iterator[None]:
        """Hold the lock that there is one of."""
        with database.transaction_sync():
            yield

    def close(self) -> None:
        """Close what tests have opened."""
        for one in reversed(self._opened):
            one.close()


class Schemas:
    """
    Schemas in a real server that tests use one after the other: to make one takes longer than most tests.

    A test's rows are removed after it. A schema that is not as it was when it was made is dropped.
    """

    def __init__(self, url: str, pooler: str | None = None) -> None:
        """
        Have no schema yet.

        Args:
            url: Of the server.
            pooler: The URL by which the library and its users reach it, if there is a pooler between.
        """
        self.url = pooler or url
        self._query = "" if pooler is None else f"&{pgbouncer.POOLED}"
        self.options: dict[str, Any] = {} if pooler is None else {"prepare_threshold": None}
        self.look = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self._free: list[str] = []
        self._shapes: dict[str, Any] = {}

    def url_of(self, schema: str) -> str:
        """Return the URL of a schema; its sessions bear its name, by which they are found."""
        return with_query(self.url, f"schema={schema}&application_name={schema}{self._query}")

    def take(self) -> str:
        """Return an empty schema, with one of the user's own beside it."""
        return self._free.pop() if self._free else self._make()

    def _make(self) -> str:
        schema = f"t{secrets.token_hex(8)}"
        self.look.execute(f"CREATE SCHEMA {schema}_own")
        self.look.execute(f"CREATE TABLE {schema}_own.notes (text text NOT NULL UNIQUE, number serial)")
        with contextlib.closing(open_database(self.url_of(schema), clock=ManualClock(), auto_migrate=True)) as database:
            database.open()
        self._shapes[schema] = self._shape(schema)
        return schema

    def _shape(self, schema: str) -> Any:
        """Return what must not change: which tables and indexes there are, their columns, and what meta says."""
        names = [schema, f"{schema}_own"]
        tables = self.look.execute(
            "SELECT oid, relnatts FROM pg_class WHERE relnamespace IN "
            "(SELECT oid FROM pg_namespace WHERE nspname = ANY(%s)) ORDER BY oid",
            [names],
        ).fetchall()
        return tables, tables and self.look.execute(f"SELECT * FROM {schema}.meta ORDER BY key").fetchall()  # noqa: S608

    def give_back(self, schema: str) -> None:
        """End the sessions that are left, and have the schema used again if it is as it was."""
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
        until(lambda: not self.look.execute(ending, [schema]).fetchall())
        if self._is_as_it_was(schema):
            for table in (*TABLES, "notes"):
                own = "_own" if table == "notes" else ""
                self.look.execute(f"DELETE FROM {schema}{own}.{table}")  # noqa: S608
            self._free.append(schema)
        else:
            self._drop(schema)

    def _is_as_it_was(self, schema: str) -> bool:
        try:
            return bool(self._shape(schema) == self._shapes[schema])
        except psycopg.errors.UndefinedTable:
            return False

    def _drop(self, schema: str) -> None:
        self.look.execute(f"DROP SCHEMA IF EXISTS {schema}, {schema}_own CASCADE")

    def close(self) -> None:
        """Leave nothing behind."""
        for schema in self._free:
            self._drop(schema)
        self.look.close()


class PostgresSystem:
    """A schema in a real server, which the tests bring along."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._look = schemas.look
        self.schema = schemas.take()
        self.url = schemas.url_of(self.schema)
        self.user_url = with_query(schemas.url, f"application_name={self.schema}")
        self.user_options = schemas.options
        self._opened: list[Any] = []

    def open(self, clock: Clock, **options: Any) -> Database:
        """Open the database as one more process would."""
        database = open_database(self.url, clock=clock, auto_migrate=options.pop("auto_migrate", True))
        assert not options
        database.open()
        self._opened.append(database)
        return database

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """Open a connection of the user's own."""
        connection = psycopg.connect(self.user_url, **self.user_options | options)
        self._opened.append(connection)
        return connection

    def keep_looking(self) -> None:
        """Do nothing: tests look through a session that is there already."""

    def table(self, name: str) -> list[dict[str, Any]]:
        """Return what is committed in one of our tables."""
        return self._look.execute(f"SELECT * FROM {self.schema}.{name}").fetchall()  # noqa: S608

    def write_note(self, connection: Any, text: str) -> None:
        """Write to the user's own table, without waiting where one would have to await."""
        if isinstance(connection, psycopg.AsyncConnection):
            connection = BlockingTwin(connection)
        connection.execute(f"INSERT INTO {self.schema}_own.notes (text) VALUES (%s)", (text,))  # noqa: S608

    def read_notes(self, connection: Any) -> list[str]:
        """Return what a connection sees of it."""
        if isinstance(connection, psycopg.AsyncConnection):
            connection = BlockingTwin(connection)
        return [row[0] for row in connection.execute(f"SELECT text FROM {self.schema}_own.notes").fetchall()]  # noqa: S608

    def notes(self) -> list[str]:
        """Return what is committed in it."""
        rows = self._look.execute(f"SELECT text FROM {self.schema}_own.notes ORDER BY number").fetchall()  # noqa: S608
        return [row["text"] for row in rows]

    def overwrite(self, run_id: str, **columns: Any) -> None:
        """Change a run's row behind our back."""
        changes = ", ".join(f"{name} = %({name})s" for name in columns)
        text = f"UPDATE {self.schema}.runs SET {changes} WHERE id = %(id)s"  # noqa: S608
        self._look.execute(text, {"id": run_id, **columns})

    def writer(self, database: Any) -> Any:
        """Return its writing session."""
        return database._writer

    def waiting(self, database: Any) -> int:
        """Return how many writes wait for the writing session."""
        return len(database._writer._queue)

    def waits_for_a_lock(self) -> bool:
        """Ask the server whether somebody waits for somebody else's row."""
        found = self._look.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'", [self.schema]
        )
        return bool(found.fetchall())

    @contextlib.contextmanager
    def writer_held(self, database: Database) -> Iterator[None]:
        """Keep the writing session's thread busy."""
        holds, go_on = threading.Event(), threading.Event()

        def hold() -> Op[None]:
            holds.set()
            go_on.wait(LIMIT_S)
            yield Statement("select_workers", {"namespace": NAMESPACE})

        held = in_thread(database.write_sync, hold)
        assert holds.wait(LIMIT_S)
        try:
            yield
        finally:
            go_on.set()
            held.result(LIMIT_S)

    def close(self) -> None:
        """Close what tests have opened, and let the next one have the schema."""
        for one in reversed(self._opened):
            one.close()
        self._schemas.give_back(self.schema)


@functools.cache
def postgres_url() -> str:
    """Return the URL of the server that this process's tests share; it ends with the process."""
    given = os.environ.get(postgres_server.URL_VARIABLE)
    if given:
        return given
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(postgres_server.running_server()).url


@functools.cache
def pgbouncer_url() -> str:
    """Return the URL that leads to that server through a PgBouncer, which ends with the process."""
    problem = pgbouncer.why_not()
    if problem:
        pytest.skip(problem)
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(pgbouncer.pgbouncer(postgres_url()))


one_colour = pytest.mark.parametrize("colour", ["async"])
"""Marks a test of many values, of code that has no colour."""


def whatever_the_database(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a test of many values, of code that knows of no database either."""
    return pytest.mark.sqlite("the same on every database")(one_colour(test))


def with_query(url: str, query: str) -> str:
    """Return *url* with more in its query."""
    return f"{url}{'&' if '?' in url else '?'}{query}"


def systems_for(module: ModuleType) -> list[str]:
    """Return what a module's tests run on: each system, or the one that it is named after."""
    about = module.__name__.rpartition("_")[2]
    return [about] if about in SYSTEMS else SYSTEMS


@functools.cache
def postgres_schemas(*, pooled: bool = False) -> Schemas:
    """Return the schemas of the tests' server, which tests use one after the other."""
    made = Schemas(postgres_url(), pgbouncer_url() if pooled else None)
    atexit.register(made.close)
    return made


def open_system(name: str, folder: Path) -> System:
    """Return a fresh database of the system *name*."""
    match name:
        case "sqlite":
            return SqliteSystem(folder)
        case "postgres":
            return PostgresSystem(postgres_schemas())
        case "pgbouncer":
            return PostgresSystem(postgres_schemas(pooled=True))
    raise ValueError(name)


def in_thread(call: Callable[..., Any], *args: Any) -> "Future[Any]":
    """Make a call in a thread of its own; what comes of it is in the future."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call(*args))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asks
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


async def cancel_at_any_moment(
    call: Callable[[], Awaitable[Any]], afterwards: Callable[[int], Awaitable[Any]]
) -> tuple[int, int]:
    """Make sixty calls, each canceled a little later than the one before; return how many went through, and did not."""
    told = canceled = 0
    for number in range(60):
        calling = asyncio.ensure_future(call())
        await asyncio.sleep(number / 20_000)
        calling.cancel()
        try:
            await calling
        except asyncio.CancelledError:
            canceled += 1
        else:
            told += 1
        await afterwards(number)
    return told, canceled


def until(is_true: Callable[[], bool]) -> None:
    """Wait for something that no signal tells of; a test whose wait takes too long fails."""
    pause = threading.Event()
    give_up_at = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < give_up_at, "this did not become true in time"
        pause.wait(0.001)


class OpenTransaction:
    """A transaction of ours, in the store's colour."""

    def __init__(self, store: "Store", transaction: Transaction) -> None:
        self._store = store
        self.raw = transaction

    @property
    def connection(self) -> Any:
        return self.raw.connection("sync")

    @property
    def is_open(self) -> bool:
        return self.raw.is_open

    def run(self, op: Callable[..., Op[Any]], *args: Any, **kwargs: Any) -> Any:
        if self._store.colour == "sync":
            return self.raw.run_sync(op(*args, **kwargs))
        return self._store.wait(self.raw.run(op(*args, **kwargs)))

    def user_code(self) -> AbstractContextManager[None]:
        return self._store.entered(self.raw.user_code_sync, self.raw.user_code)

    def savepoint(self) -> AbstractContextManager[None]:
        return self._store.entered(self.raw.savepoint_sync, self.raw.savepoint)

    def abandon(self) -> None:
        self.raw.abandon()

    def note(self, text: str) -> None:
        """Write what user code would write."""
        self._store.system.write_note(self.connection, text)


class Store:
    """An open database, spoken to in one colour, and the usual steps of a run's life."""

    def __init__(self, system: System, colour: str, clock: ManualClock) -> None:
        self.system = system
        self.colour = colour
        self.clock = clock
        self.rng = Random(1)
        self.database = system.open(clock)
        self._loop = asyncio.new_event_loop() if colour == "async" else None

    def close(self) -> None:
        self.database.close()
        if self._loop is not None:
            self._loop.close()

    # In either colour.

    def wait(self, awaitable: Any) -> Any:
        """Run a coroutine to its end, on the store's loop."""
        assert self._loop is not None
        return self._loop.run_until_complete(awaitable)

    def write(self, op: Callable[..., Op[Any]], *args: Any, **kwargs: Any) -> Any:
        if self._loop is None:
            return self.database.write_sync(lambda: op(*args, **kwargs))
        return self.wait(self.database.write(lambda: op(*args, **kwargs)))

    def read(self, op: Callable[..., Op[Any]], *args: Any, **kwargs: Any) -> Any:
        if self._loop is None:
            return self.database.read_sync(lambda: op(*args, **kwargs))
        return self.wait(self.database.read(lambda: op(*args, **kwargs)))

    def write_together(self, *makes: Callable[[], Op[Any]]) -> list[Any]:
        """Write operations that wait for their turn at the same time; return results, or what they raised."""
        if self._loop is None:
            with self.system.writer_held(self.database):
                ended = [in_thread(self.database.write_sync, make) for make in makes]
                until(lambda: self.system.waiting(self.database) == len(makes))
            return [one.exception(LIMIT_S) or one.result() for one in ended]
        with self.system.writer_held(self.database):
            tasks = [self._loop.create_task(self.database.write(make)) for make in makes]
            while self.system.waiting(self.database) < len(makes):
                self.wait(asyncio.sleep(0))
        return self.wait(asyncio.gather(*tasks, return_exceptions=True))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[OpenTransaction]:
        with self.entered(self.database.transaction_sync, self.database.transaction) as transaction:
            yield OpenTransaction(self, transaction)

    @contextlib.contextmanager
    def entered(self, sync: Callable[[], Any], make: Callable[[], Any]) -> Iterator[Any]:
        """Enter one of two context managers that are the same but for their colour."""
        if self._loop is None:
            with sync() as value:
                yield value
            return
        manager = make()
        value = self.wait(manager.__aenter__())
        try:
            yield value
        except BaseException as error:
            if not self.wait(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self.wait(manager.__aexit__(None, None, None))

    def through(self, handle: Any, op: Callable[..., Op[Any]], *args: Any, **kwargs: Any) -> Any:
        """Run a write through a handle of the user's own."""
        return self._run_through(handle, op(*args, **kwargs), writes=True)

    def read_through(self, handle: Any, op: Callable[..., Op[Any]], *args: Any, **kwargs: Any) -> Any:
        """Run a read through a handle of the user's own."""
        return self._run_through(handle, op(*args, **kwargs), writes=False)

    def _run_through(self, handle: Any, op: Op[Any], *, writes: bool) -> Any:
        executor = self.database.executor(handle, writes=writes)
        assert executor is not None
        return self._run_on(executor, op)

    def _run_on(self, executor: Executor, op: Op[Any]) -> Any:
        return executor.run_sync(op) if self._loop is None else self.wait(executor.run(op))

    # What happens to runs.

    def starting(
        self,
        action: str = "charge",
        *,
        run_id: str | None = None,
        args: str = "{}",
        on_complete: str = "",
        context: str | None = None,
        key: str | None = None,
        at_us: int | None = None,
        delay_ms: float = 0,
        **policy: Any,
    ) -> Start:
        """Return what starts one run; without jitter unless the policy has one."""
        return Start(
            id=run_id or new_run_id(self.clock),
            action=action,
            args=args,
            policy=RetryPolicy(**{"jitter": 0, **policy}),
            on_complete=on_complete,
            context=context,
            at_us=at_us,
            delay_us=round(delay_ms * 1000),
            idempotency_key=key,
        )

    def start(self, action: str = "charge", **options: Any) -> str:
        """Start one run, and return its id."""
        (run_id,) = self.write(start_runs, NAMESPACE, [self.starting(action, **options)])
        return run_id

    def worker(
        self,
        *actions: str,
        mutations: tuple[str, ...] = (),
        queues: tuple[str, ...] | None = None,
        namespace: str = NAMESPACE,
        register: bool = True,
    ) -> Claimant:
        """Announce a worker that knows these names; `charge` unless any are given."""
        claimant = Claimant(
            new_worker_id(),
            namespace,
            json.dumps(actions or ("charge",)),
            json.dumps(mutations),
            None if queues is None else json.dumps(queues),
        )
        if register:
            self.write(register_worker, claimant, "a host", 4711)
        return claimant

    def claim(self, worker: Claimant, count: int = 100, max_losses: int = ANY_LOSSES) -> Claimed:
        return self.write(claim_runs, worker, count, max_losses)

    def claim_ids(self, worker: Claimant, count: int = 100, max_losses: int = ANY_LOSSES) -> list[str]:
        claimed = self.claim(worker, count, max_losses)
        return [row["id"] for row in [*claimed.suspects, *claimed.runs]]

    def claim_one(self, worker: Claimant) -> dict[str, Any]:
        """Claim the one run that is due."""
        claimed = self.claim(worker)
        (row,) = [*claimed.suspects, *claimed.runs]
        return row

    def report(self, row: Any, worker: Claimant, outcome: Outcome, callback: CallbackMark | None = None) -> bool:
        """Settle a claimed attempt and write what follows; tell whether it still owned its run."""
        settled = self.settled(row, worker, outcome, callback)
        return bool(self.write(apply_moves, [settled]).owned)

    def settled(self, row: Any, worker: Claimant, outcome: Outcome, callback: CallbackMark | None = None) -> Settled:
        attempted = Attempted(row["failures"], row["losses"], policy_from_json(row["options"]), row["deadline_in"])
        move = settle(attempted, outcome, self.rng)
        if callback is None:
            owes = isinstance(move, Finish) and row["on_complete"]
            callback = CallbackMark("pending") if owes else CallbackMark()
        return Settled(row["id"], row["attempt"], worker.id, move, callback)

    def lose(self, worker: Claimant) -> int:
        """Have a worker die and be recovered; return how many runs it had."""
        return self.write(recover_worker, worker.id, self.rng).settled

    def claim_callbacks(self, worker: Claimant, count: int = 100, max_losses: int = ANY_LOSSES) -> list[Any]:
        return self.write(claim_callbacks, worker, count, max_losses)

    # What is there.

    def next_due(self, worker: Claimant, max_losses: int = ANY_LOSSES) -> NextDue:
        return self.read(next_due, worker, max_losses)

    def status(self, run_id: str, namespace: str = NAMESPACE) -> RunStatus:
        return self.read(read_status, namespace, run_id)

    def get(self, run_id: str) -> Run:
        """Return the run as users see it, every worker's row taken for a live one's."""
        return run_of(*self.read(read_run, NAMESPACE, run_id))

    def row(self, run_id: str) -> dict[str, Any]:
        """Return all that the run's row says."""
        (row,) = [row for row in self.system.table("runs") if row["id"] == run_id]
        return row

    def attempts(self, run_id: str) -> list[dict[str, Any]]:
        rows = [row for row in self.system.table("attempts") if row["run_id"] == run_id]
        return sorted(rows, key=lambda row: row["number"])

    def snapshot(self) -> dict[str, list[dict[str, Any]]]:
        """Return what is committed in all of our tables."""
        return {name: self.system.table(name) for name in TABLES}


class Bell:
    """Rings when a subscription is called."""

    def __init__(self, store: Store, *, active: bool = True) -> None:
        self._rung = threading.Event()
        self.subscription = store.database.changes.subscribe(self._rung.set)
        self.subscription.active = active

    def rings(self) -> bool:
        rung = self._rung.wait(LIMIT_S)
        self._rung.clear()
        return rung

    def has_rung(self) -> bool:
        return self._rung.is_set()

    def settle(self) -> None:
        """Forget what has rung."""
        self._rung.clear()
