"""
This library, as a user would call it.

Variants: ``""`` calls it from asyncio; ``sync`` blocks. Kinds beyond everybody's: ``callback`` is a no-op whose callback
inserts one row (read committed where the database knows that), ``callback_serializable`` the same, serializable.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from action_retrier import ActionRetrier, App, Call, MutationCtx, SyncActionRetrier
from action_retrier.drivers.postgres.urls import parse
from benchmarks import floor
from benchmarks.protocol import Peer, main, tasks

CONCURRENCY = 500
ACTIONS = {"callback": "benchmarks:noop", "callback_serializable": "benchmarks:noop"}
CALLBACKS = {"callback": "benchmarks:insert", "callback_serializable": "benchmarks:insert_serializable"}
VALUES = {"fail_once": "key", "stamp": "sent_ns"}


class Ours(Peer):
    library = "action-retrier"
    brings = ("pydantic", "psycopg")
    imports = "import action_retrier"
    settings = {"worker": f"concurrency={CONCURRENCY}", "SQLite": "WAL, synchronous=FULL", "else": "defaults"}  # noqa: RUF012

    def prepare(self, url: str) -> None:
        async def create() -> None:
            app, _, _ = make_app(url)
            async with app, app.transaction() as ctx:
                statement = "CREATE TABLE IF NOT EXISTS bench_rows (run_id text NOT NULL)"
                await ctx.db.execute(statement) if is_postgres(url) else ctx.db.execute(statement)

        asyncio.run(create())

    def client(self, url: str) -> Any:
        return _sync_client(url) if self.variant == "sync" else _client(url)

    async def work(self, url: str, ready: Callable[[], None]) -> None:
        app, _, _ = make_app(url)
        async with app:
            ready()
            async with app.worker(concurrency=CONCURRENCY):
                await asyncio.Event().wait()

    def left(self, url: str) -> int:
        return floor.left(url)

    def command_history(self, url: str, count: str) -> dict[str, Any]:
        """Have so many runs completed in the past."""
        began = time.monotonic()
        floor.make_history(url, int(count))
        return {"seconds": time.monotonic() - began}

    def command_in_transaction(self, url: str, count: str) -> dict[str, Any]:
        """Time transactions of a user's: bare, with one start, and with the raw INSERT of that start's row, in turns."""
        if is_postgres(url) and self.variant != "sync":
            return asyncio.run(_in_transactions_async(url, int(count)))
        return _in_transactions(url, int(count), is_sync=self.variant == "sync")


def is_postgres(url: str) -> bool:
    return url.startswith("postgres")


def make_app(url: str) -> tuple[App, ActionRetrier, SyncActionRetrier]:
    """Return an app with the actions that are measured."""
    app = App(url)

    @app.action(name="benchmarks:noop")
    async def noop() -> None:
        tasks.noop()

    @app.action(name="benchmarks:fail_once", initial_backoff_ms=0)
    async def fail_once(key: int) -> None:
        tasks.fail_once(key)

    @app.action(name="benchmarks:stamp")
    async def stamp(sent_ns: int) -> None:
        tasks.stamp(sent_ns)

    @app.action(name="benchmarks:hang")
    async def hang() -> None:
        await tasks.hang()

    if is_postgres(url):

        async def insert(ctx: MutationCtx, run_id: str) -> None:
            await ctx.db.execute("INSERT INTO bench_rows (run_id) VALUES (%s)", (run_id,))

        insert.__qualname__ = "insert"
        app.mutation(name="benchmarks:insert", isolation="read committed")(insert)
        app.mutation(name="benchmarks:insert_serializable")(insert)
    else:

        @app.mutation(name="benchmarks:insert")
        def insert_here(ctx: MutationCtx, run_id: str) -> None:
            ctx.db.execute("INSERT INTO bench_rows (run_id) VALUES (?)", (run_id,))

    return app, ActionRetrier(app), SyncActionRetrier(app)


def call(kind: str, value: int) -> dict[str, Any]:
    """Return the arguments of a start."""
    given: dict[str, Any] = {"action": ACTIONS.get(kind, f"benchmarks:{kind}")}
    if kind in VALUES:
        given["args"] = {VALUES[kind]: value}
    if kind in CALLBACKS:
        given["on_complete"] = CALLBACKS[kind]
    return given


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[Any]:
    app, retrier, _ = make_app(url)

    class Client:
        async def one(self, kind: str, value: int) -> None:
            await retrier.run(app, **call(kind, value))

        async def many(self, kind: str, values: list[int]) -> None:
            await retrier.run_many(app, [Call(**call(kind, value)) for value in values])

    async with app:
        yield Client()


@contextlib.contextmanager
def _sync_client(url: str) -> Iterator[Any]:
    app, _, retrier = make_app(url)

    class Client:
        def one(self, kind: str, value: int) -> None:
            retrier.run(app, **call(kind, value))

        def many(self, kind: str, values: list[int]) -> None:
            retrier.run_many(app, [Call(**call(kind, value)) for value in values])

    with app:
        yield Client()


def _in_transactions(url: str, count: int, *, is_sync: bool) -> dict[str, Any]:
    app, retrier, sync_retrier = make_app(url)
    taken = {"bare": 0, "start": 0, "raw": 0}
    with app, contextlib.closing(_connect(url)) as connection:
        mark = "%s" if is_postgres(url) else "?"
        for number in range(count + 50):
            for what in _in_turns(taken, number):
                began = time.perf_counter_ns()
                connection.execute("BEGIN IMMEDIATE" if mark == "?" else "BEGIN")
                connection.execute(f"INSERT INTO bench_rows (run_id) VALUES ({mark})", (str(number),))  # noqa: S608
                if what == "start":
                    if is_sync:
                        sync_retrier.run(connection, "benchmarks:noop")
                    else:
                        _at_once(retrier.run(connection, "benchmarks:noop"))
                elif what == "raw":
                    floor.insert(connection, 1)
                connection.execute("COMMIT")
                if number >= 50:  # by then statements are prepared
                    taken[what] += time.perf_counter_ns() - began
    return _added(taken, count)


def _connect(url: str) -> Any:
    if is_postgres(url):
        return floor.connect(url)
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _at_once(awaitable: Any) -> None:
    """Run what waits for nothing, as nothing does within the user's own transaction on SQLite."""
    try:
        awaitable.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


async def _in_transactions_async(url: str, count: int) -> dict[str, Any]:
    import psycopg  # noqa: PLC0415 - not needed for SQLite

    app, retrier, _ = make_app(url)
    taken = {"bare": 0, "start": 0, "raw": 0}
    async with (
        app,
        await psycopg.AsyncConnection.connect(parse(url).conninfo, autocommit=True) as connection,
    ):
        for number in range(count + 50):
            for what in _in_turns(taken, number):
                began = time.perf_counter_ns()
                await connection.execute("BEGIN")
                await connection.execute("INSERT INTO bench_rows (run_id) VALUES (%s)", (str(number),))
                if what == "start":
                    await retrier.run(connection, "benchmarks:noop")
                elif what == "raw":
                    await connection.execute(*floor.insertion(1))
                await connection.execute("COMMIT")
                if number >= 50:
                    taken[what] += time.perf_counter_ns() - began
    return _added(taken, count)


def _in_turns(taken: dict[str, int], number: int) -> list[str]:
    """Return all of them, another first each time."""
    names = list(taken)
    return names[number % 3 :] + names[: number % 3]


def _added(taken: dict[str, int], count: int) -> dict[str, Any]:
    bare, start, raw = (taken[what] / count / 1000 for what in ("bare", "start", "raw"))
    return {"bare_us": bare, "start_us": start - bare, "raw_us": raw - bare}


if __name__ == "__main__":
    main(Ours)
