"""What users set on their connections (factories, adapters, codecs, modes) is theirs: calls neither use nor change it."""

import asyncio
import contextlib
import json
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import psycopg
import pytest
import sqlalchemy
from psycopg.adapt import Loader
from psycopg.pq import TransactionStatus
from psycopg.rows import namedtuple_row
from psycopg.types.string import StrDumper
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from action_retrier import ActionRetrier, App, DatabaseUnavailable, InProgress, InvalidContext, SyncActionRetrier
from action_retrier.testing import ManualClock

from ..stores import PostgresSystem, SqliteSystem, open_system, postgres_url
from .handle_kinds import follow_the_recipe, make_app


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[PostgresSystem]:
    with contextlib.closing(open_system("postgres", tmp_path)) as system:
        yield system  # type: ignore[misc]


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteSystem]:
    with contextlib.closing(open_system("sqlite", tmp_path)) as system:
        yield system  # type: ignore[misc]


@pytest.fixture
def app(request: pytest.FixtureRequest, clock: ManualClock) -> Iterator[App]:
    """An App on whichever of the two the test has."""
    name = "postgres" if "postgres" in request.fixturenames else "sqlite"
    app = make_app(request.getfixturevalue(name), clock)
    app.action(name="charge")(charge)
    with app:
        yield app


def charge(order_id: int = 0, note: str = "") -> None: ...


class NoLoader(Loader):
    def load(self, data: Any) -> Any:
        raise AssertionError("this is the user's")


class NoDumper(StrDumper):
    def dump(self, obj: Any) -> Any:
        raise AssertionError("this is the user's")


class NoCursor(psycopg.Cursor[Any]):
    def execute(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("this is the user's")


ARGS = {"order_id": 7, "note": "ä, 100 % of '\"\\ :now"}


def test_psycopgs_factories_and_adapters_are_the_users(postgres: PostgresSystem, app: App) -> None:
    retrier = SyncActionRetrier(app)
    with psycopg.connect(postgres_url()) as connection:
        connection.row_factory = namedtuple_row
        connection.cursor_factory = NoCursor
        connection.adapters.register_loader("text", NoLoader)
        connection.adapters.register_loader("int8", NoLoader)
        connection.adapters.register_dumper(str, NoDumper)
        run_id = retrier.run(connection, "charge", ARGS)
        assert retrier.get(connection, run_id).args == ARGS
        assert (connection.row_factory, connection.cursor_factory) == (namedtuple_row, NoCursor)
    assert retrier.status(app, run_id) == InProgress()


@pytest.mark.parametrize("prepare_threshold", [0, None])
def test_psycopg_may_prepare_or_not(postgres: PostgresSystem, app: App, prepare_threshold: int | None) -> None:
    retrier = SyncActionRetrier(app)
    with psycopg.connect(postgres_url(), prepare_threshold=prepare_threshold) as connection:
        for _ in range(3):
            retrier.run(connection, "charge", ARGS)
            connection.commit()
    with psycopg.connect(postgres_url(), cursor_factory=psycopg.ClientCursor) as connection:
        retrier.run(connection, "charge", ARGS)
    assert [run.args for run in retrier.list(app).runs] == [ARGS] * 4


def test_psycopg_in_autocommit_mode_may_hold_a_block(postgres: PostgresSystem, app: App) -> None:
    retrier = SyncActionRetrier(app)
    with psycopg.connect(postgres_url(), autocommit=True) as connection:
        with connection.transaction():
            run_id = retrier.run(connection, "charge")
        assert retrier.status(connection, run_id) == InProgress()
        with connection.pipeline(), pytest.raises(InvalidContext, match="pipeline"):
            retrier.run(connection, "charge")


def test_a_failed_transaction_is_refused(postgres: PostgresSystem, app: App) -> None:
    """... and left as it is: the user rolls it back, and goes on."""
    retrier = SyncActionRetrier(app)
    with psycopg.connect(postgres_url()) as connection:
        for verb, args in (("run", ["charge"]), ("list", [])):
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1 / 0")
            with pytest.raises(InvalidContext, match="failed.*roll it back"):
                getattr(retrier, verb)(connection, *args)
            connection.rollback()
        run_id = retrier.run(connection, "charge")
        connection.commit()
        assert retrier.status(app, run_id) == InProgress()


def test_an_error_of_the_server_does_not_end_the_users_transaction(postgres: PostgresSystem, app: App) -> None:
    """A statement that fails ends a transaction in PostgreSQL: ours has a savepoint, in the same exchange with it."""
    retrier = SyncActionRetrier(app)
    with psycopg.connect(postgres_url()) as connection:
        connection.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(InvalidContext, match=r"read-only.*begin one that may write"):
            retrier.run(connection, "charge")
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.info.transaction_status == TransactionStatus.INTRANS


def test_a_two_phase_transaction_is_refused_at_once(postgres: PostgresSystem, app: App) -> None:
    """It could not be prepared whenever a worker happened to sleep, and had to be told by NOTIFY."""
    engine = sqlalchemy.create_engine(postgres_url().replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    retrier = SyncActionRetrier(app)
    with psycopg.connect(postgres_url()) as connection:
        connection.tpc_begin(connection.xid(1, "global", "branch"))
        with pytest.raises(InvalidContext, match=r"two-phase.*ordinary transaction"):
            retrier.run(connection, "charge")
        assert retrier.list(connection).runs == []
        connection.tpc_rollback()
    quiet = App(f"{postgres.url}&notify=false")
    with quiet, psycopg.connect(postgres_url()) as connection:
        connection.tpc_begin(connection.xid(1, "global", "branch"))
        assert SyncActionRetrier(quiet).run(connection, "charge")
        connection.tpc_rollback()
    with Session(engine, twophase=True) as session, pytest.raises(InvalidContext, match="two-phase"):
        retrier.run(session, "charge")


@pytest.fixture
def role(postgres: PostgresSystem) -> Iterator[str]:
    """The URL of a role that may do nothing but connect."""
    name = f"r{secrets.token_hex(8)}"
    postgres._look.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    found = psycopg.conninfo.conninfo_to_dict(postgres_url())
    yield f"postgresql://{name}:secret@{found['host']}:{found.get('port', 5432)}/{found['dbname']}"
    postgres._look.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.parametrize(
    ("grants", "refusal"),
    [
        ("", "may not read the schema.*grant it USAGE"),
        ("GRANT USAGE ON SCHEMA {schema} TO {role}", "may not read the schema.*grant it USAGE"),
        (
            "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
            "permission denied.*grant the role",
        ),
    ],
)
def test_a_role_without_rights_keeps_its_transaction(
    postgres: PostgresSystem, app: App, role: str, grants: str, refusal: str
) -> None:
    """What may be looked at is asked without an error of the server's, which would end the user's transaction."""
    if grants:
        postgres._look.execute(
            grants.format(schema=postgres.schema, role=psycopg.conninfo.conninfo_to_dict(role)["user"])
        )
    retrier = SyncActionRetrier(app)
    with psycopg.connect(role) as connection:
        with pytest.raises((InvalidContext, DatabaseUnavailable), match=refusal):
            retrier.run(connection, "charge")
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding_than_utf8_is_refused(postgres: PostgresSystem, app: App, encoding: str) -> None:
    """It could not carry all that JSON can, and psycopg would read text as bytes."""
    retrier = SyncActionRetrier(app)
    with psycopg.connect(postgres_url(), client_encoding=encoding) as connection:
        for verb, args in (("run", ["charge", ARGS]), ("list", [])):
            with pytest.raises(InvalidContext, match="client_encoding.*UTF8"):
                getattr(retrier, verb)(connection, *args)
        assert connection.info.transaction_status == TransactionStatus.IDLE


async def test_nor_does_it_end_an_async_one(postgres: PostgresSystem, app: App, asyncpg_connection: Any) -> None:
    retrier = ActionRetrier(app)
    async with await psycopg.AsyncConnection.connect(postgres_url()) as connection:
        await connection.execute("SET TRANSACTION READ ONLY")
        with pytest.raises(InvalidContext, match="read-only"):
            await retrier.run(connection, "charge")
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
    async with asyncpg_connection.transaction(readonly=True):
        with pytest.raises(InvalidContext, match="read-only"):
            await retrier.run(asyncpg_connection, "charge")
        assert await asyncpg_connection.fetchval("SELECT 1") == 1


@pytest.fixture
async def asyncpg_connection(postgres: PostgresSystem) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url(), statement_cache_size=0)
    yield connection
    await connection.close()


async def test_asyncpgs_codecs_are_the_users(app: App, postgres: PostgresSystem, asyncpg_connection: Any) -> None:
    """JSON as objects is common; whatever else it is, ours goes past it. So it does without a cache of statements."""
    retrier = ActionRetrier(app)

    def refuse(_: Any) -> Any:
        raise AssertionError("this is the user's")

    for name in ("json", "jsonb"):
        await asyncpg_connection.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    for name in ("text", "int8", "timestamptz", "bool"):
        await asyncpg_connection.set_type_codec(name, schema="pg_catalog", encoder=refuse, decoder=refuse)
    async with asyncpg_connection.transaction():
        run_id = await retrier.run(asyncpg_connection, "charge", ARGS, idempotency_key="k")
        assert (await retrier.get(asyncpg_connection, run_id)).args == ARGS
    assert await retrier.status(app, run_id) == InProgress()
    assert await asyncpg_connection.fetchval("SELECT CAST('{\"a\": 1}' AS json)") == {"a": 1}


async def test_a_failed_transaction_of_asyncpgs_is_refused(
    app: App, postgres: PostgresSystem, asyncpg_connection: Any
) -> None:
    retrier = ActionRetrier(app)
    transaction = asyncpg_connection.transaction()
    await transaction.start()
    with pytest.raises(asyncpg.DivisionByZeroError):
        await asyncpg_connection.execute("SELECT 1 / 0")
    with pytest.raises(InvalidContext, match="failed.*roll it back"):
        await retrier.run(asyncpg_connection, "charge")
    await transaction.rollback()
    async with asyncpg_connection.transaction():
        assert await retrier.run(asyncpg_connection, "charge")


async def test_a_connection_that_is_busy_is_refused(
    app: App, postgres: PostgresSystem, asyncpg_connection: Any
) -> None:
    retrier = ActionRetrier(app)
    async with asyncpg_connection.transaction():
        await retrier.run(asyncpg_connection, "charge")
        busy = asyncio.ensure_future(asyncpg_connection.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0)
        with pytest.raises(InvalidContext, match="await what it is doing first"):
            await retrier.run(asyncpg_connection, "charge")
        await busy


async def test_aiosqlites_factories_are_the_users(sqlite: SqliteSystem, app: App) -> None:
    retrier = ActionRetrier(app)

    def refuse(*_: Any) -> Any:
        raise AssertionError("this is the user's")

    async with aiosqlite.connect(sqlite.path) as connection:
        connection.row_factory = refuse
        connection.text_factory = bytes
        run_id = await retrier.run(connection, "charge", ARGS)
        assert (await retrier.get(connection, run_id)).args == ARGS
        assert (connection.row_factory, connection.text_factory) == (refuse, bytes)
        await connection.commit()
    assert await retrier.status(app, run_id) == InProgress()


async def test_aiosqlite_begins_as_a_writer(sqlite: SqliteSystem, app: App) -> None:
    retrier = ActionRetrier(app)
    async with aiosqlite.connect(sqlite.path) as connection:
        await retrier.run(connection, "charge")
        other = sqlite.connect(timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")


# -- SQLAlchemy --------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(sqlite: SqliteSystem) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(f"sqlite:///{sqlite.path}")
    yield engine
    engine.dispose()


def test_a_nested_block_that_would_commit_is_refused(sqlite: SqliteSystem, app: App, engine: sqlalchemy.Engine) -> None:
    """By default sqlite3 does not begin before a SAVEPOINT, whose release then commits: the remedy is a recipe."""
    retrier = SyncActionRetrier(app)
    with Session(engine) as session:
        with session.begin_nested(), pytest.raises(InvalidContext, match=r"nested block.*sqlite-enabling-trans"):
            retrier.run(session, "charge")
        session.rollback()
    assert retrier.list(app).runs == []


def test_a_nested_block_after_a_call_is_a_savepoint(sqlite: SqliteSystem, app: App, engine: sqlalchemy.Engine) -> None:
    """The call has begun the transaction, as a writer: from then on nested blocks are what they look like."""
    retrier = SyncActionRetrier(app)
    with Session(engine) as session:
        kept = retrier.run(session, "charge")
        with session.begin_nested() as nested:
            retrier.run(session, "charge")
            nested.rollback()
        with session.begin_nested():
            too = retrier.run(session, "charge")
        assert {run.id for run in retrier.list(session).runs} == {kept, too}
        session.rollback()
        assert retrier.list(app).runs == []
        with session.begin_nested(), pytest.raises(InvalidContext, match="nested block"):
            retrier.run(session, "charge")


@pytest.mark.parametrize(("options", "refused"), [({}, set()), ({"idempotency_key": "k"}, {"database is locked"})])
def test_a_recipe_session_begins_as_a_writer(
    sqlite: SqliteSystem, app: App, engine: sqlalchemy.Engine, options: Any, refused: set[str]
) -> None:
    """SQLAlchemy's BEGIN is a reader's, and what that has read another writer may outdate: the lock comes first."""
    follow_the_recipe(engine)
    retrier = SyncActionRetrier(app)
    others: list[str] = []

    def write_meanwhile(statement: str) -> None:
        if "action_retrier" in statement:
            other = sqlite.connect(timeout=0)
            try:
                sqlite.write_note(other, f"after {len(others)}")
                other.commit()
            except sqlite3.OperationalError as error:
                others.append(str(error))

    retrier.list(app)
    with Session(engine) as session:
        session.connection().connection.driver_connection.set_trace_callback(write_meanwhile)
        retrier.run(session, "charge", **options)
        session.connection().connection.driver_connection.set_trace_callback(None)
        session.commit()
    assert set(others) == refused  # a lone statement has none after it
    assert len(sqlite.notes()) <= 1  # before the first of our statements, which takes the lock


def test_a_database_without_tables_is_refused_in_a_transaction(sqlite: SqliteSystem, app: App, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        with pytest.raises(InvalidContext, match="no tables"):
            SyncActionRetrier(app).run(other, "charge")
        assert other.in_transaction


def test_a_session_that_failed_is_refused(sqlite: SqliteSystem, app: App, engine: sqlalchemy.Engine) -> None:
    retrier = SyncActionRetrier(app)

    class Base(sqlalchemy.orm.DeclarativeBase): ...

    class Note(Base):
        __tablename__ = "notes"
        text = sqlalchemy.orm.mapped_column(sqlalchemy.String, primary_key=True)

    sqlite.write_note(connection := sqlite.connect(), "taken")
    connection.commit()
    with Session(engine) as session:
        session.add(Note(text="taken"))
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            session.flush()
        with pytest.raises(InvalidContext, match="failed.*roll it back"):
            retrier.run(session, "charge")
        session.rollback()
        run_id = retrier.run(session, "charge")
        session.commit()
    assert retrier.status(app, run_id) == InProgress()


def test_an_invalidated_connection_is_refused(sqlite: SqliteSystem, app: App, engine: sqlalchemy.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        connection.invalidate()
        with pytest.raises(InvalidContext, match="invalidated"):
            SyncActionRetrier(app).run(connection, "charge")


async def test_a_connection_that_was_not_started_is_refused(sqlite: SqliteSystem, app: App) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite.path}")
    with pytest.raises(InvalidContext, match="has not been started; await it"):
        await ActionRetrier(app).run(engine.connect(), "charge")


def test_a_session_whose_transaction_has_ended_is_refused(
    sqlite: SqliteSystem, app: App, engine: sqlalchemy.Engine
) -> None:
    """Within its `with` block SQLAlchemy begins no other."""
    with Session(engine) as session, session.begin():
        session.commit()
        with pytest.raises(InvalidContext, match=r"that cannot be used now \(Can't operate on closed transaction"):
            SyncActionRetrier(app).run(session, "charge")


def test_a_session_on_another_system_is_refused(postgres: PostgresSystem, app: App, tmp_path: Path) -> None:
    with (
        Session(sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'x.db'}", poolclass=NullPool)) as session,
        pytest.raises(InvalidContext, match="on sqlite by pysqlite, which the app cannot use; make the engine with"),
    ):
        SyncActionRetrier(app).run(session, "charge")


def test_a_session_with_two_databases_has_to_choose(
    sqlite: SqliteSystem, app: App, engine: sqlalchemy.Engine, tmp_path: Path
) -> None:
    class Base(sqlalchemy.orm.DeclarativeBase): ...

    class Note(Base):
        __tablename__ = "notes"
        text = sqlalchemy.orm.mapped_column(sqlalchemy.String, primary_key=True)

    retrier = SyncActionRetrier(app)
    with sessionmaker(binds={Note: engine})() as session:
        with pytest.raises(InvalidContext, match="bind_arguments"):
            retrier.run(session, "charge")
        run_id = retrier.run(session.connection(bind_arguments={"mapper": Note}), "charge")
        session.commit()
    assert retrier.status(app, run_id) == InProgress()


async def test_a_scoped_session_is_the_session_that_it_stands_for(sqlite: SqliteSystem, app: App) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite.path}")
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    run_id = await ActionRetrier(app).run(scoped, "charge")
    await scoped.commit()
    await scoped.remove()
    await engine.dispose()
    assert await ActionRetrier(app).status(app, run_id) == InProgress()


async def test_a_session_of_the_users_own_class_is_a_session(sqlite: SqliteSystem, app: App) -> None:
    class Sessions(AsyncSession): ...

    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite.path}")
    async with Sessions(engine) as session, session.begin():
        run_id = await ActionRetrier(app).run(session, "charge")
    await engine.dispose()
    assert await ActionRetrier(app).status(app, run_id) == InProgress()


def test_none_of_the_libraries_is_imported_for_a_handle(tmp_path: Path) -> None:
    """They are known by the module of the handle's type: what the user has not imported is not there."""
    source = """
import sqlite3, sys
from action_retrier import App, SyncActionRetrier
class Session: pass
app = App("sqlite:///x.db")
retrier = SyncActionRetrier(app)
retrier.run(sqlite3.connect("x.db"), "charge")
try:
    retrier.run(Session(), "charge")
except Exception as error:
    assert "Session" in str(error), error
assert not {"sqlalchemy", "django", "asyncpg", "aiosqlite", "psycopg"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True)


def test_blocking_programs_with_sqlalchemy_need_no_greenlet(tmp_path: Path) -> None:
    """SQLAlchemy 2.1 brings it for its asyncio only, and cannot import that without."""
    source = """
import sys
sys.modules["greenlet"] = None  # as if it were not installed
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from action_retrier import App, InvalidContext, MutationCtx, Success, SyncActionRetrier
engine = create_engine("sqlite:///x.db")
app = App(engine)
retrier = SyncActionRetrier(app)

@app.action(name="charge")
def charge() -> str: return "receipt"

@app.mutation(name="settle")
def settle(ctx: MutationCtx) -> None:
    ctx.session.execute(text("INSERT INTO settled VALUES (1)"))

with Session(engine) as session, session.begin():
    session.execute(text("CREATE TABLE settled (n int)"))
    run_id = retrier.run(session, charge, on_complete=settle)
with app, app.worker():
    assert retrier.wait(app, run_id) == Success("receipt")
with engine.connect() as connection:
    assert retrier.get(connection, run_id).state == "succeeded"
    assert connection.execute(text("SELECT count(*) FROM settled")).scalar_one() == 1
try:
    retrier.run(engine, charge)
except InvalidContext as error:
    assert "ctx is an Engine" in str(error), error
"""
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True)
