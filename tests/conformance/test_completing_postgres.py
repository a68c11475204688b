"""What user code can do to a transaction in PostgreSQL's and psycopg's own ways: it ends none unnoticed."""

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.adapt import Loader

from action_retrier._lifecycle import Succeeded
from action_retrier.results import InProgress

from .bench import OWN, SHARED, Bench, isolations

pytestmark = pytest.mark.usefixtures("no_tasks_left")

TEXTS: dict[str, Any] = {
    "ABORT": "ABORT",
    "COMMIT AND CHAIN": "COMMIT AND CHAIN",
    "END WORK": "end work",
    "PREPARE TRANSACTION": "PREPARE TRANSACTION 'mine'",
    "after a semicolon": "SELECT 1; COMMIT",
    "after a literal": "SELECT ';'; COMMIT",
    "after comments": "-- COMMIT\n/* ; */ SELECT 1 /* COMMIT */; /* */ COMMIT -- ;",
    "after a dollar quote": "SELECT $x$ ; $x$; ROLLBACK",
    "bytes": b"COMMIT",
    "sql.SQL": sql.SQL("COMMIT"),
    "composed": sql.SQL("SELECT {}; COMMIT").format(sql.Literal("x")),
}
BLOCKING: dict[str, Callable[[Any], object]] = {
    "commit": lambda db: db.commit(),
    "rollback": lambda db: db.rollback(),
    "with db": lambda db: db.__exit__(None, None, None),
    "with db that raises": lambda db: db.__exit__(ValueError, ValueError(), None),
    "a cursor": lambda db: db.cursor().execute("COMMIT"),
    "a stream": lambda db: list(db.cursor().stream("COMMIT")),
    "a copy": lambda db: db.cursor().copy("COMMIT").__enter__(),
    "executemany": lambda db: db.cursor().executemany("COMMIT", [()]),
} | {name: lambda db, text=text: db.execute(text) for name, text in TEXTS.items()}  # type: ignore[misc]
ASYNC: dict[str, Callable[[Any], Awaitable[object]]] = {
    "commit": lambda db: db.commit(),
    "rollback": lambda db: db.rollback(),
    "async with db": lambda db: db.__aexit__(None, None, None),
    "a cursor": lambda db: db.cursor().execute("COMMIT"),
    "a stream": lambda db: db.cursor().stream("COMMIT").__anext__(),
    "a copy": lambda db: db.cursor().copy("COMMIT").__aenter__(),
    "executemany": lambda db: db.cursor().executemany("COMMIT", [()]),
} | {name: lambda db, text=text: db.execute(text) for name, text in TEXTS.items()}  # type: ignore[misc]
ways = pytest.mark.parametrize(
    ("colour", "way"), [("def", way) for way in BLOCKING] + [("async def", way) for way in ASYNC], ids=str
)


@isolations
@ways
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
async def test_a_callback_cannot_end_the_transaction(
    bench: Bench, isolation: Any, colour: str, way: str, *, swallowed: bool
) -> None:
    """I4: an error, also where its own error is swallowed; nothing commits, and neighbours are done."""

    def suppressed() -> Any:
        return contextlib.suppress(Exception) if swallowed else contextlib.nullcontext()

    def cheat(ctx: Any, context: Any) -> None:
        bench.note(ctx, f"cheat {context}")
        with suppressed():
            BLOCKING[way](ctx.db)
        with suppressed():
            bench.note(ctx, f"cheat on {context}")

    async def cheat_async(ctx: Any, context: Any) -> None:
        bench.note(ctx, f"cheat {context}")
        with suppressed():
            await ASYNC[way](ctx.db)
        with suppressed():
            bench.note(ctx, f"cheat on {context}")

    await bench.check_a_cheat(cheat if colour == "def" else cheat_async, isolation=isolation)


PAST_THE_GUARD: dict[str, Callable[[Any, bytes], object]] = {
    "libpq": lambda db, text: db.pgconn.exec_(text),
    "a cursor of psycopg's own": lambda db, text: psycopg.ClientCursor(db).execute(text),
}
past_the_guard = pytest.mark.parametrize("way", PAST_THE_GUARD.values(), ids=PAST_THE_GUARD)


@isolations
@past_the_guard
async def test_a_rollback_past_the_guard_is_noticed_afterwards(bench: Bench, isolation: Any, way: Any) -> None:
    """I4: also where another transaction has been begun instead; what was written in that one does not stay."""

    def cheat(ctx: Any) -> None:
        bench.note(ctx, "cheat")
        way(ctx.db, b"ROLLBACK; BEGIN")
        bench.note(ctx, "cheat on")

    bench.callback(cheat, isolation=isolation)
    bench.callback(lambda ctx, context: bench.note(ctx, f"honest {context}"), "honest", isolation=isolation)
    rows = [bench.claimed(name, context=str(n)) for n, name in enumerate(("honest", "done", "honest"))]

    await bench.complete(rows)

    assert [bench.state(row)[:2] for row in rows] == [("succeeded", word) for word in ("done", "pending", "done")]
    assert bench.notes == ["honest 0", "honest 2"]
    assert "user code ended the transaction" in bench.store.row(rows[1]["id"])["callback_error"]


@isolations
@past_the_guard
async def test_a_commit_past_the_guard_commits_the_record_too(bench: Bench, isolation: Any, way: Any) -> None:
    """I4: the mark stands before the call, so that nobody is called twice, neighbours included."""

    def cheat(ctx: Any) -> None:
        bench.note(ctx, "cheat")
        way(ctx.db, b"COMMIT")

    bench.callback(cheat, isolation=isolation)
    bench.callback(lambda ctx, context: bench.note(ctx, f"honest {context}"), "honest", isolation=isolation)
    rows = [bench.claimed(name, context=str(n)) for n, name in enumerate(("honest", "done", "honest"))]

    await bench.complete(rows)

    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "done")] * 3
    assert sorted(bench.notes) == ["cheat", "honest 0", "honest 2"]


@pytest.mark.parametrize("savepoint", ["ROLLBACK TO mine", "ROLLBACK WORK TO SAVEPOINT mine", "RELEASE mine"])
async def test_what_only_looks_like_an_end_is_none(bench: Bench, savepoint: str) -> None:
    """Literals, names and comments may say what they like, and savepoints are the user's."""

    def harmless(ctx: Any) -> None:
        ctx.db.execute("SAVEPOINT mine")
        ctx.db.execute(savepoint)
        ctx.db.execute("SELECT '; COMMIT' AS \"; ROLLBACK; \" /* ; END */ -- ; ABORT")
        ctx.db.execute("DO $$ BEGIN PERFORM 1; END; $$")
        bench.note(ctx, "harmless")

    bench.callback(harmless)
    row = bench.claimed()

    await bench.complete([row])

    assert (bench.notes, bench.state(row)[:2]) == (["harmless"], ("succeeded", "done"))


class Broken(Loader):
    """Makes nothing of what it is given."""

    def load(self, data: Any) -> Any:
        raise ZeroDivisionError(data)


SETTINGS: dict[str, Callable[[Any], object]] = {
    "cursor_factory": lambda db: setattr(db, "cursor_factory", None),
    "row_factory": lambda db: setattr(db, "row_factory", None),
    "adapters": lambda db: db.adapters.register_loader("text", Broken),
    "prepare_threshold": lambda db: setattr(db, "prepare_threshold", 0),
}
SESSION_SETTINGS = [
    "SET search_path = nowhere",
    "SET default_transaction_read_only = on",
    "SET ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
]


@isolations
@pytest.mark.parametrize("colour", ["def", "async def"])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
async def test_settings_of_the_connection_are_its_own(
    bench: Bench, isolation: Any, colour: str, setting: Callable[[Any], object]
) -> None:
    """The next callback on the same connection finds it as if nobody had been there, in the same transaction too."""

    def set_it(ctx: Any, context: Any) -> None:
        bench.note(ctx, context)
        setting(ctx.db)

    async def set_it_async(ctx: Any, context: Any) -> None:
        await ctx.db.execute("SELECT 1")
        set_it(ctx, context)

    await completed(bench, set_it if colour == "def" else set_it_async, isolation)


@isolations
@pytest.mark.parametrize(
    "setting",
    [
        *SESSION_SETTINGS,
        "SET LOCAL search_path = nowhere",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET client_encoding = 'LATIN1'",
        "SET standard_conforming_strings = off",
        "DEALLOCATE ALL",
    ],
)
async def test_settings_of_the_session_are_its_own(bench: Bench, isolation: Any, setting: str) -> None:
    """The next callback in the same session finds it as if nobody had been there, in the same transaction too."""
    shown = "SELECT current_user, current_setting('search_path'), current_setting('TimeZone'), current_setting('{}')"
    found, transactions = [], []

    def set_it(ctx: Any, context: Any) -> None:
        bench.note(ctx, context)
        query = shown.format("idle_in_transaction_session_timeout")
        found.append(ctx.db.execute(query).fetchone())
        transactions.append(ctx.db.execute("SELECT pg_current_xact_id()").fetchone())
        ctx.db.execute(setting)

    await completed(bench, set_it, isolation)
    assert len(set(found)) == 1
    assert len(set(transactions)) == (1 if isolation == SHARED else 3)


@isolations
@pytest.mark.parametrize("setting", ["SET client_encoding = 'LATIN1'", "SET standard_conforming_strings = off"])
async def test_what_the_next_run_returns_is_written_as_it_is(bench: Bench, isolation: Any, setting: str) -> None:
    """In the encoding, and with the quotes and backslashes, that are ours."""

    def set_it(ctx: Any) -> None:
        ctx.db.execute(setting)

    bench.callback(set_it, isolation=isolation)
    rows = [bench.claimed() for _ in range(3)]
    result = json.dumps("'ü€\\'; \"$1\n", ensure_ascii=False)

    assert await bench.completion.complete([bench.report(row, Succeeded(result)) for row in rows]) == []

    assert [bench.store.row(row["id"])["result"] for row in rows] == [result] * 3
    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "done")] * 3


async def test_a_callback_that_shares_its_transaction_costs_two_exchanges(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of ours, and one for its only statement."""
    exchanges = 0
    wait = psycopg.AsyncConnection.wait

    async def counted(connection: Any, *given: Any, **options: Any) -> Any:
        nonlocal exchanges
        exchanges += 1
        return await wait(connection, *given, **options)

    async def one_statement(ctx: Any) -> None:
        await ctx.db.execute("SELECT 1")

    bench.callback(one_statement, isolation=SHARED)
    few, many = ([bench.claimed() for _ in range(count)] for count in (2, 6))
    await bench.complete([bench.claimed(), bench.claimed()])  # which opens the connection
    monkeypatch.setattr(psycopg.AsyncConnection, "wait", counted)
    took = []
    for rows in (few, many):
        exchanges = 0
        await bench.complete(rows)
        took.append(exchanges)

    assert took[1] - took[0] == 4 * 2
    assert {bench.state(row)[:2] for row in (*few, *many)} == {("succeeded", "done")}


async def test_an_error_of_the_database_that_a_callback_swallows_is_its_own(bench: Bench) -> None:
    """The transaction has failed with it, up to the savepoint. Its neighbours are called once."""
    called = []

    async def swallow(ctx: Any, context: Any) -> None:
        called.append(context)
        with contextlib.suppress(psycopg.Error):
            await ctx.db.execute("SELECT 1 / 0")

    def honest(ctx: Any, context: Any) -> None:
        called.append(context)
        bench.note(ctx, context)

    bench.callback(swallow, isolation=SHARED)
    bench.callback(honest, "honest", isolation=SHARED)
    rows = [bench.claimed(name, context=f'"{n}"') for n, name in enumerate(("honest", "done", "honest", "done"))]

    await bench.complete(rows)

    assert called == ["0", "1", "2", "3"]
    assert bench.notes == ["0", "2"]
    assert [bench.state(row)[1:] for row in rows] == [("done", 1), ("pending", 1), ("done", 1), ("pending", 1)]


@past_the_guard
async def test_the_last_one_that_ends_a_shared_transaction_is_noticed(bench: Bench, way: Any) -> None:
    """Nothing comes after it but the COMMIT, which would commit what it has begun."""

    def cheat(ctx: Any) -> None:
        way(ctx.db, b"ROLLBACK; BEGIN")
        bench.note(ctx, "cheat on")

    bench.callback(cheat, isolation=SHARED)
    bench.callback(lambda ctx, context: bench.note(ctx, f"honest {context}"), "honest", isolation=SHARED)
    rows = [bench.claimed(name, context=str(n)) for n, name in enumerate(("honest", "done"))]

    await bench.complete(rows)

    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "done"), ("succeeded", "pending")]
    assert bench.notes == ["honest 0"]
    assert "user code ended the transaction" in bench.store.row(rows[1]["id"])["callback_error"]


async def test_what_is_left_in_the_session_does_not_meet_the_next(bench: Bench) -> None:
    """Else a callback that makes a temporary table would fail the second time, in the same session."""

    def leave_it(ctx: Any, context: Any) -> None:
        bench.note(ctx, context)
        mine = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert ctx.db.execute(mine).fetchall() == []
        assert ctx.db.execute("SELECT pg_listening_channels()").fetchall() == []
        ctx.db.execute("SELECT pg_advisory_lock(77)")
        ctx.db.execute("CREATE TEMP TABLE scratch (a int)")
        ctx.db.execute("LISTEN mine")
        ctx.db.execute("DECLARE mine CURSOR WITH HOLD FOR SELECT 1")

    await completed(bench, leave_it, OWN)


@isolations
async def test_statements_that_callbacks_prepare_are_known_to_the_next(bench: Bench, isolation: Any) -> None:
    """Their names are the session's, in whatever colour it is used."""

    def prepare(ctx: Any, context: Any) -> None:
        bench.note(ctx, context)
        for number in range(3):
            assert ctx.db.execute(f"SELECT {number}", prepare=True).fetchone() == (number,)

    await completed(bench, prepare, isolation)


async def completed(bench: Bench, callback: Callable[..., Any], isolation: Any) -> None:
    """Have a callback called three times, and see that all is done."""
    bench.callback(callback, isolation=isolation)
    rows = [bench.claimed(context=f'"{text}"') for text in ("first", "second", "third")]

    await bench.complete(rows)

    assert [bench.store.row(row["id"])["callback_error"] for row in rows] == [None] * 3
    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "done")] * 3
    assert bench.notes == ["first", "second", "third"]
    assert bench.store.status(bench.store.start()) == InProgress()


@pytest.mark.parametrize("colour", ["def", "async def"])
async def test_whatever_does_not_end_the_transaction_is_user_codes_to_do(bench: Bench, colour: str) -> None:
    """Many rows at once, rows one by one, COPY."""
    table = f"{bench.store.system.schema}_own.notes"  # type: ignore[attr-defined]
    insert, select = f"INSERT INTO {table} (text) VALUES (%s)", f"SELECT text FROM {table} ORDER BY text"  # noqa: S608
    seen = []

    def write(ctx: Any) -> None:
        cursor = ctx.db.cursor()
        cursor.executemany(insert, [["a"], ["b"]])
        with cursor.copy(f"COPY {table} (text) FROM STDIN") as copy:
            copy.write_row(["c"])
        seen.extend(cursor.stream(select))

    async def write_async(ctx: Any) -> None:
        cursor = ctx.db.cursor()
        await cursor.executemany(insert, [["a"], ["b"]])
        async with cursor.copy(f"COPY {table} (text) FROM STDIN") as copy:
            await copy.write_row(["c"])
        seen.extend([row async for row in cursor.stream(select)])

    bench.callback(write if colour == "def" else write_async)
    row = bench.claimed()

    await bench.complete([row])

    assert (bench.state(row)[1], bench.notes, seen) == ("done", ["a", "b", "c"], [("a",), ("b",), ("c",)])


@pytest.mark.parametrize("colour", ["def", "async def"])
async def test_a_connection_that_user_code_has_kept_ends_nothing_afterwards(bench: Bench, colour: str) -> None:
    """It may say commit or roll back: what was its transaction has ended, and no other is open."""
    kept = []

    def keep(ctx: Any) -> None:
        kept.append(ctx.db)
        bench.note(ctx, "mine")

    async def keep_async(ctx: Any) -> None:
        keep(ctx)

    bench.callback(keep if colour == "def" else keep_async)
    row = bench.claimed()
    await bench.complete([row])
    (connection,) = kept
    for end in (connection.rollback, connection.commit):
        ended = end()
        if ended is not None:
            await ended

    assert (bench.state(row)[1], bench.notes) == ("done", ["mine"])
    second = bench.claimed()
    await bench.complete([second])
    assert bench.state(second)[1] == "pending"  # its note is there already: it was a transaction of its own
