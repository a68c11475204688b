"""A user's own ``sqlite3.Connection``: operations run in whatever transaction it holds."""

import asyncio
import contextlib
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiosqlite
import pytest

from action_retrier._ops.control import cancel_run, load_status
from action_retrier._ops.reads import read_status
from action_retrier._ops.starts import start_runs
from action_retrier.drivers import open_database
from action_retrier.drivers.sqlite.handle import LEGACY, how_it_begins
from action_retrier.errors import DatabaseUnavailable, IdempotencyConflict, InvalidContext, RunNotFound
from action_retrier.results import InProgress
from action_retrier.testing import ManualClock

from ..stores import NAMESPACE, SqliteSystem, Store, in_thread

UNKNOWN = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
def connection(system: SqliteSystem) -> sqlite3.Connection:
    return system.connect()


def begin(connection: sqlite3.Connection, how: str) -> None:
    """Begin a transaction the way that some user would, or leave it to us."""
    match how:
        case "a write of the user's":
            connection.execute("INSERT INTO notes VALUES ('mine')")
        case "BEGIN IMMEDIATE" | "BEGIN":
            connection.isolation_level = None
            connection.execute(how)
        case "a savepoint":
            connection.isolation_level = None
            connection.execute("SAVEPOINT users")


BEGINNINGS = ["nothing", "a write of the user's", "BEGIN IMMEDIATE", "BEGIN", "a savepoint"]


@pytest.mark.parametrize("how", BEGINNINGS)
def test_a_call_commits_with_the_users_own_writes(store: Store, connection: sqlite3.Connection, how: str) -> None:
    """I6: nothing exists before the user's commit, everything from then on."""
    start = store.starting()
    begin(connection, how)

    assert store.through(connection, start_runs, NAMESPACE, [start]) == [start.id]

    assert connection.in_transaction
    assert store.system.table("runs") == []
    assert store.read_through(connection, load_status, NAMESPACE, start.id)["state"] == "pending"
    connection.execute("RELEASE users") if how == "a savepoint" else connection.commit()
    assert store.status(start.id) == InProgress()


@pytest.mark.parametrize("how", BEGINNINGS)
def test_a_call_is_rolled_back_with_the_users_own_writes(
    store: Store, connection: sqlite3.Connection, how: str
) -> None:
    """I6: nothing started by a rolled back transaction exists."""
    start = store.starting()
    begin(connection, how)
    store.through(connection, start_runs, NAMESPACE, [start])

    connection.rollback()

    assert (store.system.table("runs"), store.system.notes()) == ([], [])
    assert store.claim_ids(store.worker()) == []


def test_an_operation_that_raises_leaves_the_users_transaction_as_it_was(
    store: Store, connection: sqlite3.Connection
) -> None:
    """The user catches the error and goes on; what the operation had written is gone."""
    store.start(key="k", args='{"a": 1}')
    kept = store.starting()
    store.system.write_note(connection, "mine")
    store.through(connection, start_runs, NAMESPACE, [kept])

    with pytest.raises(IdempotencyConflict):
        store.through(connection, start_runs, NAMESPACE, [store.starting(), store.starting(key="k")])
    with pytest.raises(RunNotFound):
        store.through(connection, cancel_run, NAMESPACE, UNKNOWN)

    connection.commit()
    assert store.system.notes() == ["mine"]
    assert {row["id"] for row in store.system.table("runs") if not row["idempotency_key"]} == {kept.id}


def test_a_conflict_under_an_older_name_leaves_nothing_behind(store: Store, connection: sqlite3.Connection) -> None:
    """I6: a start beside it that has no key is undone with it: it was not the last that could fail."""
    store.start("old", key="k", args='{"a": 1}')
    renamed = store.starting("new", key="k")._replace(aliases=("old",))
    store.system.write_note(connection, "mine")

    with pytest.raises(IdempotencyConflict):
        store.through(connection, start_runs, NAMESPACE, [store.starting(), renamed])

    connection.commit()
    assert len(store.system.table("runs")) == 1
    assert store.system.notes() == ["mine"]


def test_many_that_fail_half_way_leave_nothing_behind(store: Store, connection: sqlite3.Connection) -> None:
    """I6: SQLite is sent one row after the other, and only a single statement is undone by itself."""
    bad: Any = None
    store.system.write_note(connection, "mine")

    with pytest.raises(sqlite3.IntegrityError):
        store.through(connection, start_runs, NAMESPACE, [store.starting(), store.starting(bad)])

    connection.commit()
    assert store.system.table("runs") == []
    assert store.system.notes() == ["mine"]


def test_the_users_savepoints_are_the_users(store: Store, connection: sqlite3.Connection) -> None:
    one, two = store.starting(), store.starting()
    begin(connection, "BEGIN IMMEDIATE")
    store.through(connection, start_runs, NAMESPACE, [one])
    connection.execute("SAVEPOINT users")
    store.through(connection, start_runs, NAMESPACE, [two])
    connection.execute("ROLLBACK TO users")
    connection.commit()

    assert [row["id"] for row in store.system.table("runs")] == [one.id]


def test_a_handle_that_begins_implicitly_begins_as_a_writer(store: Store, connection: sqlite3.Connection) -> None:
    """A deferred transaction might be refused at its first write; ours holds the lock from the start."""
    executor = store.database.executor(connection, writes=True)

    assert executor is not None
    assert executor.in_transaction
    other = store.system.connect(timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")


def test_a_read_begins_nothing(store: Store, connection: sqlite3.Connection) -> None:
    run_id = store.start()
    for how in (None, ""):
        connection.isolation_level = how
        assert store.read_through(connection, load_status, NAMESPACE, run_id)["state"] == "pending"
        assert not connection.in_transaction


def test_autocommit_cannot_hold_a_write(store: Store, connection: sqlite3.Connection) -> None:
    """Nothing is written, and the error says what to do."""
    connection.isolation_level = None

    with pytest.raises(InvalidContext, match="autocommit mode .*BEGIN IMMEDIATE"):
        store.through(connection, start_runs, NAMESPACE, [store.starting()])

    assert store.system.table("runs") == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the attribute is of Python 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_pythons_own_autocommit_attribute_is_understood(store: Store, *, autocommit: bool) -> None:
    connection = store.system.connect(autocommit=autocommit)
    if autocommit:
        with pytest.raises(InvalidContext, match="autocommit mode"):
            store.through(connection, start_runs, NAMESPACE, [store.starting()])
        return
    start = store.starting()
    store.through(connection, start_runs, NAMESPACE, [start])
    assert store.system.table("runs") == []
    connection.commit()
    assert store.status(start.id) == InProgress()


@pytest.mark.parametrize(
    ("autocommit", "isolation_level", "begins"),
    [
        (LEGACY, "", "implicitly"),
        (LEGACY, None, "explicitly"),
        (True, "", "explicitly"),
        (False, None, "always"),
    ],
)
def test_how_a_connection_begins_is_told_by_its_settings(
    autocommit: int, isolation_level: str | None, begins: str
) -> None:
    """Those of Python 3.12 too, whatever Python this is: the older attribute says nothing then."""
    connection = SimpleNamespace(autocommit=autocommit, isolation_level=isolation_level)
    assert how_it_begins(connection) == begins


@pytest.mark.parametrize("writes", [True, False])
def test_a_closed_handle_is_refused(store: Store, connection: sqlite3.Connection, *, writes: bool) -> None:
    connection.close()

    with pytest.raises(InvalidContext, match="closed"):
        store.database.executor(connection, writes=writes)


def test_a_handle_of_another_thread_is_refused(store: Store) -> None:
    made = in_thread(sqlite3.connect, store.database.location).result()

    with pytest.raises(InvalidContext, match="cannot be used here"):
        store.database.executor(made, writes=True)


def test_a_transaction_of_another_thread_is_refused(store: Store) -> None:
    def begun() -> sqlite3.Connection:
        made = sqlite3.connect(store.database.location)
        store.system.write_note(made, "theirs")
        return made

    connection = in_thread(begun).result()

    with pytest.raises(InvalidContext, match="cannot be used here"):
        store.through(connection, start_runs, NAMESPACE, [store.starting()])


@pytest.mark.parametrize("handle", [None, 7, "sqlite:///x.db", Ellipsis], ids=repr)
def test_what_is_no_handle_is_none(store: Store, handle: Any) -> None:
    assert store.database.executor(handle, writes=True) is None


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("tables", [True, False])
def test_a_handle_on_another_database_is_refused(
    store: Store, clock: ManualClock, tmp_path: Path, *, tables: bool, writes: bool
) -> None:
    """Judged by what is read through the handle, never by a URL; nothing is written there."""
    path = tmp_path / "other.db"
    if tables:
        other = open_database(f"sqlite:///{path}", clock=clock, auto_migrate=True)
        other.open()
        other.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        expected = "another database" if tables else "no tables"
        with pytest.raises(InvalidContext, match=expected):
            store.database.executor(connection, writes=writes)
        assert not connection.in_transaction
        count = connection.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'action_retrier%'").fetchone()
        assert bool(count[0]) is tables


def test_a_copy_under_another_name_is_the_same_database(store: Store, tmp_path: Path) -> None:
    """A link leads to the same file: what counts is where the handle's writes go."""
    link = tmp_path / "link.db"
    link.symlink_to(store.database.location)
    start = store.starting()
    with contextlib.closing(sqlite3.connect(link)) as connection:
        store.through(connection, start_runs, NAMESPACE, [start])
        connection.commit()

    assert store.status(start.id) == InProgress()


def test_rows_and_texts_reach_us_as_they_are(store: Store, connection: sqlite3.Connection) -> None:
    """We bring our own cursors and row factories, and leave the user's in place."""
    factory = lambda *_: 1 / 0  # noqa: E731 - whoever calls it is wrong
    connection.row_factory = factory
    connection.text_factory = bytes
    start = store.starting(key="k")

    assert store.through(connection, start_runs, NAMESPACE, [start]) == [start.id]
    assert store.through(connection, start_runs, NAMESPACE, [store.starting(key="k")]) == [start.id]

    assert (connection.row_factory, connection.text_factory) == (factory, bytes)
    connection.commit()
    assert store.get(start.id).args == {}


def test_a_transaction_that_read_before_somebody_wrote_is_told_what_to_do(
    store: Store, connection: sqlite3.Connection
) -> None:
    """SQLite cannot let it write, however long it waits: the error says how to begin instead."""
    begin(connection, "BEGIN")
    connection.execute("SELECT count(*) FROM notes").fetchone()
    store.start()

    with pytest.raises(DatabaseUnavailable, match="BEGIN IMMEDIATE"):
        store.through(connection, start_runs, NAMESPACE, [store.starting()])


def test_a_locked_database_is_unavailable(store: Store) -> None:
    holder, connection = store.system.connect(), store.system.connect(timeout=0)
    holder.execute("INSERT INTO notes VALUES ('held')")

    with pytest.raises(DatabaseUnavailable, match="locked"):
        store.through(connection, start_runs, NAMESPACE, [store.starting()])


def test_an_error_that_does_not_speak_of_the_database_is_the_users_own(
    store: Store, connection: sqlite3.Connection
) -> None:
    """A progress handler of theirs breaks the statement off."""
    connection.set_progress_handler(lambda: 1, 1)

    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        store.through(connection, start_runs, NAMESPACE, [store.starting()])

    connection.set_progress_handler(None, 0)
    connection.rollback()
    assert store.system.table("runs") == []


def test_a_handle_on_a_file_that_was_removed_is_refused(clock: ManualClock, tmp_path: Path) -> None:
    """Nobody else would ever see what is written there."""
    system = SqliteSystem(tmp_path)
    database = open_database(f"sqlite:///{system.path}", clock=clock, auto_migrate=True)
    with contextlib.closing(system.connect()) as connection:
        connection.execute("INSERT INTO notes VALUES ('mine')")
        system.path.unlink()

        with pytest.raises(InvalidContext, match="no tables"):
            database.executor(connection, writes=True)
    system.close()


async def test_a_transaction_that_ends_while_a_call_waits_for_its_turn_is_none(store: Store) -> None:
    """Else the start would commit by itself."""
    async with aiosqlite.connect(store.database.location, isolation_level=None) as connection:
        await connection.execute("BEGIN")
        handle: Any = store.database.executor(connection, writes=True)
        async with handle.alone():
            call = asyncio.ensure_future(handle.run(start_runs(NAMESPACE, [store.starting()])))
            await asyncio.sleep(0)
            await connection.commit()

        with pytest.raises(InvalidContext, match="autocommit mode"):
            await call

    assert store.system.table("runs") == []


def test_what_is_no_connection_of_aiosqlites_is_no_handle(store: Store) -> None:
    assert store.database.executor(aiosqlite.Cursor.__new__(aiosqlite.Cursor), writes=True) is None


# The very first use of a database.


@pytest.mark.parametrize("commit", [True, False])
def test_the_first_call_may_come_through_a_users_transaction(
    clock: ManualClock, tmp_path: Path, *, commit: bool
) -> None:
    """I6: the tables are made in it, since it holds the only lock, and go with it if it is rolled back."""
    system = SqliteSystem(tmp_path)
    database = open_database(f"sqlite:///{system.path}", clock=clock, auto_migrate=True)
    with contextlib.closing(system.connect()) as connection:
        system.write_note(connection, "mine")
        executor = database.executor(connection, writes=True)
        assert executor is not None
        with pytest.raises(RunNotFound):
            executor.run_sync(cancel_run(NAMESPACE, UNKNOWN))
        assert connection.in_transaction
        connection.commit() if commit else connection.rollback()
        (count,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'action_retrier%'").fetchone()

    assert bool(count) is commit
    with contextlib.closing(Store(system, "sync", clock)) as store:
        assert store.status(store.start()) == InProgress()
    system.close()


def test_the_first_call_may_be_a_read_on_a_connection_of_the_users(clock: ManualClock, tmp_path: Path) -> None:
    """Nothing is there, and nothing is written to find that out."""
    system = SqliteSystem(tmp_path)
    database = open_database(f"sqlite:///{system.path}", clock=clock, auto_migrate=True)
    with contextlib.closing(system.connect()) as connection:
        executor = database.executor(connection, writes=False)
        assert executor is not None
        with pytest.raises(RunNotFound):
            executor.run_sync(read_status(NAMESPACE, UNKNOWN))
        assert not connection.in_transaction
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall() == [("notes",)]
    system.close()


def test_tables_of_an_older_version_are_not_upgraded_in_a_users_transaction(
    store: Store, connection: sqlite3.Connection
) -> None:
    connection.execute("UPDATE action_retrier_meta SET value = '0' WHERE key = 'version'")
    connection.commit()

    with pytest.raises(InvalidContext, match="older version.*migrate"):
        store.database.executor(connection, writes=True)
