"""`App(engine)`: mutations run in the transactions of the user's SQLAlchemy engine, through the user's models."""

import asyncio
import contextlib
import inspect
import secrets
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import String, create_engine, event, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from action_retrier import (
    ActionRetrier,
    App,
    DatabaseUnavailable,
    InProgress,
    InvalidContext,
    MutationCtx,
    RunNotFound,
    Success,
    SyncActionRetrier,
)
from action_retrier.drivers.sqlalchemy.urls import url_of
from action_retrier.testing import ManualClock, isolated

from ..stores import in_thread, postgres_url
from .conftest import Colour, Lane

DRIVERS = ["sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+psycopg async", "postgresql+asyncpg"]


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    text: Mapped[str] = mapped_column(String, primary_key=True)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@contextlib.contextmanager
def fresh_database(driver: str, folder: Path) -> Iterator[str]:
    """Give the address of a new database, as the driver's part of a URL."""
    if driver.startswith("sqlite"):
        yield f"{driver}:///{folder / 'engine.db'}"
        return
    name = f"t{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            told = server.info
            yield f"{driver.removesuffix(' async')}://{told.user}:secret@{told.host}:{told.port}/{name}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def make_engine(driver: str, url: str) -> Any:
    is_async = driver.endswith(("async", "aiosqlite", "asyncpg"))
    return (create_async_engine if is_async else create_engine)(url)


async def told(value: Any) -> Any:
    """Return what a call of either colour returns."""
    return await value if inspect.isawaitable(value) else value


def colored(engine: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """Return user code of the engine's colour, of a coroutine function that awaits nothing but `told`."""
    if isinstance(engine, AsyncEngine):

        async def run_async(ctx: MutationCtx, run_id: str = "") -> Any:
            return await body(ctx, run_id)

        return run_async

    def run(ctx: MutationCtx, run_id: str = "") -> Any:
        try:
            body(ctx, run_id).send(None)
        except StopIteration as ended:
            return ended.value
        raise AssertionError

    return run


class Program(Colour):
    """A user's program around an engine."""

    def __init__(self, engine: Any, clock: ManualClock) -> None:
        self.name = "async" if isinstance(engine, AsyncEngine) else "sync"
        self.engine = engine
        self.clock = clock
        self._lane = Lane()
        self.app = App(engine, clock=clock)
        self.retrier = self.new_retrier()

    def mutation(self, body: Callable[..., Any], **options: Any) -> Any:
        return self.app.mutation(name=f"m{secrets.token_hex(4)}", **options)(colored(self.engine, body))

    async def texts(self) -> list[str]:
        """What is committed in the user's own table."""
        if self.is_async:
            async with AsyncSession(self.engine) as session:
                return sorted(await session.scalars(select(Note.text)))
        with Session(self.engine) as session:
            return sorted(session.scalars(select(Note.text)))


@pytest.fixture
async def api(driver: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Program]:
    with fresh_database(driver, tmp_path) as url:
        engine = make_engine(driver, url)
        if isinstance(engine, AsyncEngine):
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
        else:
            Base.metadata.create_all(engine)
        async with Program(engine, clock) as program:
            yield program
        await told(engine.dispose())


async def add_note(ctx: MutationCtx, run_id: str) -> None:
    ctx.session.add(Note(text=run_id or "a note"))


async def test_a_callback_writes_through_the_users_models(api: Program) -> None:
    """... and its writes commit with the record that it is done."""
    done = api.scripted("done")
    callback = api.mutation(add_note)
    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success("done")

    assert await api.texts() == [run_id]
    assert (await api.get(api.app, run_id)).callback.state == "done"


async def test_a_callback_that_raises_leaves_nothing_and_is_tried_again(api: Program) -> None:
    tries = []

    async def fail_first(ctx: MutationCtx, run_id: str) -> None:
        ctx.session.add(Note(text=f"{run_id} {len(tries)}"))
        await told(ctx.session.flush())
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")

    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=api.mutation(fail_first))
    async with api.worker() as worker:
        await worker.until_idle()
        assert (await api.texts(), (await api.get(api.app, run_id)).callback.state) == ([], "pending")
        api.clock.advance(3_600_000)
        await worker.until_idle()

    assert await api.texts() == [f"{run_id} 1"]
    assert done.executions == 1


async def test_callbacks_that_share_a_transaction_do_not_share_an_error(api: Program) -> None:
    """`read committed` lets them be batched; one that raises, or breaks a constraint, takes only itself back."""

    async def note_unless_bad(ctx: MutationCtx, run_id: str) -> None:
        ctx.session.add(Note(text=run_id))
        if run_id == bad[0]:
            ctx.session.add(Note(text="taken"))

    await api.run_mutation(api.mutation(lambda ctx, _: add_note(ctx, "taken")))
    done = api.scripted("done")
    callback = api.mutation(note_unless_bad, isolation="read committed")
    run_ids = [await api.run(api.app, done.action, on_complete=callback) for _ in range(6)]
    bad = run_ids[2:3]
    async with api.worker() as worker:
        await worker.until_idle()

    assert await api.texts() == sorted([*run_ids[:2], *run_ids[3:], "taken"])
    assert [run.id for run in await api.all_runs(callback="pending")] == bad


async def test_a_callback_that_ends_a_shared_transaction_takes_only_itself_back(api: Program) -> None:
    """Its savepoint is gone with the transaction, so each of the others is done again by itself."""

    async def cheat(ctx: MutationCtx, run_id: str) -> None:
        ctx.session.add(Note(text=run_id))
        if run_id == bad[0]:
            await told(ctx.db.execute("ROLLBACK"))
            raise LookupError(run_id)

    done = api.scripted("done")
    callback = api.mutation(cheat, isolation="read committed")
    run_ids = [await api.run(api.app, done.action, on_complete=callback) for _ in range(4)]
    bad = run_ids[2:3]
    async with api.worker() as worker:
        await worker.until_idle()

    assert await api.texts() == sorted([*run_ids[:2], *run_ids[3:]])
    assert [run.id for run in await api.all_runs(callback="pending")] == bad


async def test_a_callback_that_takes_too_long_loses_a_shared_transaction_for_itself_only(api: Program) -> None:
    """Nothing can be undone on a connection that it still has; the others are done again by themselves."""
    stuck, given_up, tries, left = threading.Event(), threading.Event(), [], []

    async def hang(ctx: MutationCtx, run_id: str) -> None:
        if run_id != bad[0]:
            ctx.session.add(Note(text=run_id))
            return
        db = ctx.db
        tries.append(1)
        stuck.set()
        while api.is_async and not given_up.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.01)
        assert given_up.wait(30)
        try:  # it goes on with what is not its own any more
            await told(db.execute("SELECT 1"))
        finally:
            left.append(1)

    done = api.scripted("done")
    callback = api.mutation(hang, isolation="read committed", timeout_ms=1000)
    run_ids = [await api.run(api.app, done.action, on_complete=callback) for _ in range(4)]
    bad = run_ids[2:3]

    async def is_over() -> bool:
        if stuck.is_set():
            stuck.clear()
            api.clock.advance(1001)  # nobody else is at work now
        return await api.texts() == sorted([*run_ids[:2], *run_ids[3:]])

    async with api.worker():
        await api.eventually(is_over, within_s=30)
        assert [run.id for run in await api.all_runs(callback="pending")] == bad
        given_up.set()
        await api.eventually(lambda: len(left) == len(tries) > 1, within_s=30)


async def test_what_a_mutation_starts_is_part_of_its_transaction(api: Program) -> None:
    """By the ctx or by its session, which is a handle like any other; in a nested block of the session's too."""
    done = api.scripted("done")

    async def start(ctx: MutationCtx, _: str) -> list[str]:
        started = [await told(api.retrier.run(ctx, done.action)), await told(api.retrier.run(ctx.session, done.action))]
        nested = await told(ctx.session.begin_nested())
        undone = await told(api.retrier.run(ctx.session, done.action))
        await told(nested.rollback())
        ctx.session.add(Note(text="mine"))
        assert ctx.db is not None
        return [*started, undone]

    one, two, undone = await api.run_mutation(api.mutation(start))

    assert await api.texts() == ["mine"]
    assert [await api.status(api.app, run_id) for run_id in (one, two)] == [InProgress()] * 2
    with pytest.raises(RunNotFound):
        await api.status(api.app, undone)


async def commit(ctx: MutationCtx, _: str) -> None:
    ctx.session.add(Note(text="bad"))
    await told(ctx.session.commit())


async def commit_swallowed(ctx: MutationCtx, _: str) -> None:
    with contextlib.suppress(RuntimeError):
        await commit(ctx, _)


async def commit_connection(ctx: MutationCtx, _: str) -> None:
    connection = await told(ctx.session.connection())
    await told(connection.commit())


async def roll_back(ctx: MutationCtx, _: str) -> None:
    ctx.session.add(Note(text="bad"))
    await told(ctx.session.rollback())


async def roll_back_and_go_on(ctx: MutationCtx, _: str) -> None:
    ctx.session.add(Note(text="bad"))
    await told(ctx.session.flush())
    await told(ctx.session.rollback())
    ctx.session.add(Note(text="worse"))


async def commit_driver(ctx: MutationCtx, _: str) -> None:
    await told(ctx.db.execute("COMMIT"))
    ctx.session.add(Note(text="bad"))


async def commit_driver_and_begin(ctx: MutationCtx, _: str) -> None:
    await told(ctx.db.execute("COMMIT"))
    await told(ctx.db.execute("BEGIN"))


@pytest.mark.parametrize(
    "ending",
    [
        commit,
        commit_swallowed,
        commit_connection,
        roll_back,
        roll_back_and_go_on,
        commit_driver,
        commit_driver_and_begin,
    ],
)
async def test_ending_the_transaction_is_an_error_and_no_way_out(api: Program, ending: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="user code .*(committed|rolled back|ended)"):
        await api.run_mutation(api.mutation(ending))

    assert await api.texts() == []
    await api.run_mutation(api.mutation(add_note))  # and the next one finds a sound connection
    assert await api.texts() == ["a note"]


async def test_a_call_after_the_end_of_the_transaction_is_refused(api: Program) -> None:
    """It would have a transaction of its own, or none."""
    done = api.scripted("done")

    async def end_and_start(ctx: MutationCtx, _: str) -> None:
        await told(ctx.db.execute("ROLLBACK"))
        await told(api.retrier.run(ctx, done.action))

    with pytest.raises(RuntimeError, match="user code ended the transaction"):
        await api.run_mutation(api.mutation(end_and_start))

    assert await api.all_runs() == []


@pytest.mark.parametrize("driver", [one for one in DRIVERS if one.startswith("postgresql")], indirect=True)
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
async def test_an_error_that_fails_the_transaction_commits_nothing(api: Program, *, swallowed: bool) -> None:
    """PostgreSQL goes on with no transaction after an error; whoever swallows that is told so in the end."""

    async def divide(ctx: MutationCtx, _: str) -> None:
        await told(ctx.db.execute("INSERT INTO notes (text) VALUES ('lost')"))
        with contextlib.suppress(Exception) if swallowed else contextlib.nullcontext():
            await told(ctx.db.execute("SELECT 1 / 0"))

    with pytest.raises(Exception, match="transaction (is aborted|has failed)" if swallowed else "division by zero"):
        await api.run_mutation(api.mutation(divide))

    assert await api.texts() == []


@pytest.mark.parametrize("driver", [one for one in DRIVERS if one.startswith("postgresql")], indirect=True)
async def test_a_mutation_whose_session_is_lost_says_so(api: Program) -> None:
    """The pool gets no connection back that cannot even roll back."""

    async def lose(ctx: MutationCtx, _: str) -> None:
        ctx.session.add(Note(text="lost"))
        await told(ctx.session.flush())
        await told(ctx.session.execute(sqlalchemy.text("SELECT pg_terminate_backend(pg_backend_pid())")))

    with pytest.raises((DatabaseUnavailable, DBAPIError, psycopg.OperationalError)):
        await api.run_mutation(api.mutation(lose))

    await api.run_mutation(api.mutation(add_note))
    assert await api.texts() == ["a note"]


async def test_a_nested_block_of_the_sessions_is_user_codes(api: Program) -> None:
    """Its commit releases a savepoint."""

    async def nest(ctx: MutationCtx, _: str) -> None:
        nested = await told(ctx.session.begin_nested())
        ctx.session.add(Note(text="a note"))
        await told(nested.commit())
        nested = await told(ctx.session.begin_nested())
        ctx.session.add(Note(text="undone"))
        await told(nested.rollback())

    await api.run_mutation(api.mutation(nest))

    assert await api.texts() == ["a note"]


async def test_an_error_of_the_database_is_reported_as_it_is(api: Program) -> None:
    """SQLAlchemy rolls back after a flush that fails; that is no doing of the user's."""

    async def twice(ctx: MutationCtx, _: str) -> None:
        for _ in range(2):
            await told(ctx.session.execute(sqlalchemy.insert(Note).values(text="once")))

    async def flushed(ctx: MutationCtx, _: str) -> None:
        ctx.session.add(Note(text="a note"))
        await told(ctx.session.flush())

    await api.run_mutation(api.mutation(add_note))
    for body in (add_note, flushed, twice):
        with pytest.raises(IntegrityError):
            await api.run_mutation(api.mutation(body))
    assert await api.texts() == ["a note"]


async def test_the_mutations_own_error_is_not_hidden_by_a_flush(api: Program) -> None:
    async def half_done(ctx: MutationCtx, _: str) -> None:
        ctx.session.add(Note(text=None))
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await api.run_mutation(api.mutation(half_done))


async def test_a_mutation_that_takes_too_long_loses_its_transaction(api: Program) -> None:
    """Even if it does not react, and goes on with the session: nothing of it is committed."""
    gone_on = threading.Event()
    given_up = threading.Event()

    async def endless(ctx: MutationCtx, _: str) -> None:
        session = ctx.session
        session.add(Note(text="before"))
        await told(session.flush())
        if api.is_async:
            while not given_up.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.01)
        else:
            assert given_up.wait(30)
        try:
            session.add(Note(text="after"))
            await told(session.flush())
        finally:
            gone_on.set()

    real = App(api.engine)
    endless_mutation = real.mutation(name="endless", timeout_ms=50)(colored(api.engine, endless))
    with pytest.raises(Exception, match="timeout_ms=50"):
        await api.call(real.run_mutation if api.is_async else real.run_mutation_sync, endless_mutation)
    given_up.set()
    await asyncio.to_thread(gone_on.wait, 30)
    await api.run_mutation(api.mutation(add_note))
    assert await api.texts() == ["a note"]
    await api.call(real._database.close)


@pytest.mark.parametrize("length", [3_000_000, 300_000_000])
async def test_a_statement_that_takes_too_long_is_given_up_with_its_transaction(
    api: Program, driver: str, length: int
) -> None:
    """It is told as what it is, and no lock of it stays behind, whatever its client does with a canceled call."""
    count = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {}) SELECT count(*) FROM n"
    statement = count.format(length) if driver.startswith("sqlite") else f"SELECT pg_sleep({length / 6e6})"

    async def slow(ctx: MutationCtx, _: str) -> None:
        ctx.session.add(Note(text="slow"))
        await told(ctx.session.flush())
        await told(ctx.session.execute(sqlalchemy.text(statement)))

    real = App(api.engine)
    mutation = real.mutation(name="slow", timeout_ms=50)(colored(api.engine, slow))
    for _ in range(3):
        with pytest.raises(Exception, match="took longer than timeout_ms=50: rolled back"):
            await api.call(real.run_mutation if api.is_async else real.run_mutation_sync, mutation)
    await asyncio.wait_for(api.run_mutation(api.mutation(add_note)), 4)
    assert await api.texts() == ["a note"]
    await api.call(real._database.close)


async def test_a_mutation_of_the_other_colour_is_refused_at_once(api: Program) -> None:
    async def wrong_async(ctx: MutationCtx) -> None: ...

    def wrong(ctx: MutationCtx) -> None: ...

    with pytest.raises(ValueError, match="colour"):
        api.app.mutation(name="wrong")(wrong if api.is_async else wrong_async)
    with pytest.raises(InvalidContext, match="app.transaction"):
        if api.is_async:
            with api.app.transaction():
                pass
        else:
            async with api.app.transaction():
                pass


async def test_a_transaction_of_the_apps_gives_its_session(api: Program) -> None:
    done = api.scripted("done")
    async with api.transaction() as ctx:
        run_id = await api.run(ctx, done.action)
        ctx.session.add(Note(text="mine"))

    assert await api.texts() == ["mine"]
    assert await api.status(api.app, run_id) == InProgress()


def charge() -> None: ...


async def test_its_transactions_are_any_apps_on_the_same_database(api: Program) -> None:
    """Judged by the installation, not by the way there."""
    other = App(url_of(getattr(api.engine, "sync_engine", api.engine)), clock=api.clock)
    other.action(name="charge")(charge)
    retrier: Any = (ActionRetrier if api.is_async else SyncActionRetrier)(other)
    async with api.transaction() as ctx:
        run_id = await api.call(retrier.run, ctx, "charge")

    assert await api.call(retrier.status, other, run_id) == InProgress()
    assert "CREATE TABLE" in api.app._database.schema_sql()
    await api.call(other._database.close)


@contextlib.contextmanager
def waiting_to_write(
    api: Program, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Keep the engine's next transaction waiting for its turn; yields what tells that it waits, and what ends that."""
    waits, go_on = threading.Event(), threading.Event()
    api.turns = []  # type: ignore[attr-defined] # the garbage collector must not end one that nobody has ended
    underneath = api.app._database.underneath  # type: ignore[attr-defined]
    turn = underneath.turn_to_write

    @contextlib.contextmanager
    def slow_turn() -> Iterator[None]:
        with turn():
            waits.set()
            assert go_on.wait(30)
            yield

    def turn_to_write() -> Any:
        api.turns.append(slow_turn())  # type: ignore[attr-defined]
        return api.turns[-1]  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(underneath, "turn_to_write", turn_to_write)
        yield waits, go_on


async def test_whoever_no_longer_waits_for_a_transaction_leaves_it_to_nobody(
    api: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From async code, on a blocking engine too: it is left as soon as it has been entered."""
    mutation = api.mutation(add_note)
    with waiting_to_write(api, monkeypatch) as (waits, go_on):
        calling = asyncio.ensure_future(api.app.run_mutation(mutation))
        assert await asyncio.to_thread(waits.wait, 30)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        go_on.set()

    assert await api.texts() == []
    await asyncio.wait_for(api.app.run_mutation(mutation), 30)
    assert await api.texts() == ["a note"]


async def test_a_transaction_that_cannot_be_entered_says_why(api: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """From async code, on a blocking engine too."""
    mutation = api.mutation(add_note)
    with monkeypatch.context() as patch:
        patch.setattr(api.app._database, "_begin", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await api.app.run_mutation(mutation)

    await asyncio.wait_for(api.app.run_mutation(mutation), 30)
    assert await api.texts() == ["a note"]


async def test_a_transaction_that_is_left_without_an_error_after_it_was_abandoned_commits_nothing(api: Program) -> None:
    database = api.app._database
    if api.is_async:
        async with database.transaction() as transaction:
            transaction.abandon()
    else:
        with database.transaction_sync() as transaction:
            transaction.abandon()
            with contextlib.suppress(Exception):  # whoever goes on with it learns that it has been cut off
                transaction.connection("sync").execute("SELECT 1")

    await asyncio.wait_for(api.app.run_mutation(api.mutation(add_note)), 30)
    assert await api.texts() == ["a note"]


@pytest.mark.parametrize("driver", ["sqlite", "postgresql+psycopg"], indirect=True)
async def test_a_def_mutation_that_takes_too_long_keeps_no_async_caller_waiting(api: Program) -> None:
    """The thread that it does not leave is given up with it, and others get another one."""
    release = threading.Event()
    ended = threading.Event()

    async def hang(ctx: MutationCtx, _: str) -> None:
        db = ctx.db
        assert release.wait(30)
        with contextlib.suppress(Exception):  # goes on with what is not its own any more
            await told(db.execute("SELECT 1"))
        ended.set()

    real = App(api.engine)
    mutation = real.mutation(name="hang", timeout_ms=50)(colored(api.engine, hang))
    with pytest.raises(Exception, match="timeout_ms=50"):
        await asyncio.wait_for(real.run_mutation(mutation), 30)
    # More at once than lanes are kept, too.
    await asyncio.gather(*(api.app.run_mutation(api.mutation(add_nothing)) for _ in range(8)))
    release.set()
    assert await asyncio.to_thread(ended.wait, 30)
    await asyncio.to_thread(real._database.close)


async def add_nothing(ctx: MutationCtx, _: str) -> None: ...


async def test_where_the_database_is_can_be_shown(api: Program) -> None:
    assert "secret" not in repr(api.app) + api.app.location + api.app._database.url


async def test_an_app_that_is_open_is_not_lent_to_a_test(api: Program, tmp_path: Path) -> None:
    """What it holds open belongs to the engine's database."""
    with pytest.raises(RuntimeError, match="is open"), isolated(api.app, f"sqlite:///{tmp_path}/test.db"):
        pass


def test_a_password_in_an_engines_query_is_masked() -> None:
    app = App(create_engine("postgresql+psycopg://user@host/shop?password=secret"))

    assert "secret" not in repr(app) + app._database.url
    assert app._database._underneath._target.conninfo.count("secret") == 1


@pytest.mark.parametrize("isolation", ["serializable", "read committed"])
async def test_a_transaction_is_isolated_as_asked(api: Program, isolation: Any) -> None:
    if "sqlite" in api.app._database.url:
        pytest.skip("it has one level")
    async with contextlib.AsyncExitStack() as stack:
        if api.is_async:
            transaction = await stack.enter_async_context(api.app._database.transaction(isolation))
            if "asyncpg" in api.app._database.url:
                found = await transaction.connection("async").fetchval("SHOW transaction_isolation")
            else:
                found = await (await transaction.connection("async").execute("SHOW transaction_isolation")).fetchone()
        else:
            transaction = stack.enter_context(api.app._database.transaction_sync(isolation))
            found = transaction.connection("sync").execute("SHOW transaction_isolation").fetchone()
    assert found in {isolation, (isolation,)}


# -- what engines there are --------------------------------------------------------------------------------------------


def test_without_an_engine_there_is_no_session(tmp_path: Path) -> None:
    app = App(f"sqlite:///{tmp_path / 'plain.db'}")
    with app, app.transaction() as ctx, pytest.raises(InvalidContext, match=r"App\(engine\)"):
        _ = ctx.session


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="no plain file"):
        App(create_engine(url, poolclass=NullPool))


def test_an_engine_whose_address_cannot_be_told_is_refused(tmp_path: Path) -> None:
    made = create_engine("sqlite:///x.db", creator=lambda: sqlite3.connect(tmp_path / "other.db"), poolclass=NullPool)
    listening = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    event.listen(listening, "do_connect", lambda *_: None)
    for engine in (made, listening, create_engine("postgresql+psycopg://", poolclass=NullPool)):
        with pytest.raises(ValueError, match="give the App the database's URL instead"):
            App(engine)


def test_an_engine_of_a_kind_that_cannot_be_used_is_refused() -> None:
    engine = create_engine("sqlite+pysqlcipher://:secret@/x.db", module=sqlite3)
    with pytest.raises(ValueError, match=r"of a kind that this library cannot use: make it with") as failure:
        App(engine)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("given", [7, object(), Path("x.db")])
def test_what_is_neither_a_url_nor_an_engine_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="SQLAlchemy engine"):
        App(given)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql+asyncpg://u:p%40ss%2F@db:5433/shop?ssl=require&command_timeout=5",
            {"user": "u", "password": "p@ss/", "host": "db", "port": "5433", "dbname": "shop", "sslmode": "require"},
        ),
        (
            "postgresql+psycopg://u@/shop?host=a:1&host=b:2&target_session_attrs=read-write",
            {"user": "u", "host": "a,b", "port": "1,2", "dbname": "shop", "target_session_attrs": "read-write"},
        ),
        (
            "postgresql+psycopg://u@/shop?host=/run/postgresql&prepare_threshold=3",
            {"user": "u", "host": "/run/postgresql", "dbname": "shop"},
        ),
    ],
)
def test_an_engines_address_is_libpqs(url: str, expected: dict[str, str]) -> None:
    app = App((create_async_engine if "asyncpg" in url else create_engine)(url))

    assert psycopg.conninfo.conninfo_to_dict(app._database._underneath._target.conninfo) == expected
    assert "p%40ss" not in repr(app) + app._database.url


def test_a_thread_that_waits_for_its_turn_waits_for_the_engines_transaction(tmp_path: Path) -> None:
    """On SQLite a mutation by the engine queues with our own writes, instead of fighting for the file's lock."""
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}", connect_args={"timeout": 0})
    Base.metadata.create_all(engine)
    app = App(engine)

    def write() -> None:
        with app.transaction() as ctx:
            ctx.session.add(Note(text="theirs"))

    with app:
        with app.transaction() as ctx:
            ctx.session.add(Note(text="mine"))
            ctx.session.flush()
            waiting = in_thread(write)
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
        waiting.result(10)
    with Session(engine) as session:
        assert sorted(session.scalars(select(Note.text))) == ["mine", "theirs"]
    engine.dispose()
