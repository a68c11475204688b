"""Users' connections of psycopg's and asyncpg's: what state they are in, and what their errors mean."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest

from action_retrier._ops.control import load_status
from action_retrier._ops.starts import start_runs
from action_retrier._statements import Op, Statement
from action_retrier.drivers.postgres.connection import explain
from action_retrier.errors import DatabaseUnavailable, InvalidContext, RunNotFound
from action_retrier.results import InProgress
from action_retrier.testing import ManualClock

from ..stores import NAMESPACE, PostgresSystem, Store


@pytest.fixture
def connection(store: Store) -> Any:
    return store.system.connect()


def test_a_connection_that_is_busy_is_refused(store: Store, connection: psycopg.Connection[Any]) -> None:
    """Whatever it is doing has not ended, and would be broken off."""
    with (
        connection.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy,
        pytest.raises(InvalidContext, match="busy with another statement"),
    ):
        store.database.executor(connection, writes=True)
    assert copy


def test_a_connection_that_is_busy_with_a_call_of_ours_is_waited_for(
    store: Store, connection: psycopg.Connection[Any]
) -> None:
    """Threads and tasks may share one: their calls take turns."""
    first: Any = store.database.executor(connection, writes=True)
    start = store.starting()
    with first.alone_sync(), connection.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        second = store.database.executor(connection, writes=True)
        assert list(copy)
    assert second is not None
    second.run_sync(start_runs(NAMESPACE, [start]))
    connection.commit()
    assert store.status(start.id) == InProgress()


@pytest.mark.parametrize("discard", ["DISCARD ALL", "DEALLOCATE ALL"])
def test_what_was_prepared_on_a_users_connection_may_be_discarded(
    store: Store, connection: psycopg.Connection[Any], discard: str
) -> None:
    """A pool that resets its connections does: neither is the transaction lost, nor what was started."""
    started = []

    def start() -> None:
        one = store.starting()
        executor: Any = store.database.executor(connection, writes=True)
        started.extend(executor.run_sync(start_runs(NAMESPACE, [one])))

    for _ in range(3):
        connection.execute("SELECT 1", prepare=False)  # the transaction has begun
        for _ in range(7):  # prepared from the sixth on
            start()
        connection.commit()
        connection.autocommit = True
        connection.execute(discard.encode(), prepare=False)
        connection.autocommit = False

    assert {row["id"] for row in store.system.table("runs")} == set(started)


def test_a_start_that_fails_leaves_a_users_transaction_as_it_was(
    store: Store, connection: psycopg.Connection[Any]
) -> None:
    """Prepared or not, with what was sent together half done."""
    connection.prepare_threshold = 0
    one = store.starting()
    executor: Any = store.database.executor(connection, writes=True)
    connection.execute("SELECT 1")
    for _ in range(2):
        executor.run_sync(start_runs(NAMESPACE, [store.starting()]))
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        executor.run_sync(_broken())

    assert executor.run_sync(start_runs(NAMESPACE, [one])) == [one.id]
    connection.commit()
    assert store.status(one.id) == InProgress()


def _broken() -> Op[None]:
    yield Statement("insert_runs", {"namespace": NAMESPACE, "rows": "[{]"}, is_last=True)


def test_a_notification_that_comes_with_the_answer_is_the_users(
    store: Store, connection: psycopg.Connection[Any]
) -> None:
    """Whoever listens on the connection hears what came while we used it."""
    heard = []
    connection.add_notify_handler(lambda note: heard.append(note.payload))
    connection.execute("LISTEN theirs")
    connection.commit()
    with store.system.connect(autocommit=True) as other:
        other.execute("NOTIFY theirs, 'one'")
    executor: Any = store.database.executor(connection, writes=True)
    for _ in range(2):  # what has come during a transaction is told when it has ended
        connection.execute("SELECT 1")
        executor.run_sync(start_runs(NAMESPACE, [store.starting()]))
        connection.commit()

    assert heard == ["one"]


def test_what_is_no_connection_of_asyncpgs_is_no_handle(store: Store) -> None:
    assert store.database.executor(asyncpg.Range(1, 2), writes=True) is None


def test_an_error_of_the_clients_own_does_not_speak_of_the_server(store: Store) -> None:
    error = psycopg.ProgrammingError("the query has 1 placeholder but 2 parameters were passed")
    assert explain(error, store.database._target) is None  # type: ignore[attr-defined]


@pytest.fixture
async def theirs(system: PostgresSystem, clock: ManualClock) -> AsyncIterator[tuple[Any, Any]]:
    """A connection of asyncpg's, and what runs operations through it."""
    database = system.open(clock)
    connection = await asyncpg.connect(system.user_url)
    handle: Any = database.executor(connection, writes=False)
    yield connection, handle
    connection.terminate()
    database.close()


async def test_an_asyncpg_connection_that_was_closed_meanwhile_is_unavailable(theirs: tuple[Any, Any]) -> None:
    connection, handle = theirs
    connection.terminate()

    with pytest.raises(DatabaseUnavailable, match="can be reached"):
        await handle.run(load_status(NAMESPACE, "r"))


@pytest.mark.parametrize("error", [ConnectionResetError("reset by peer"), asyncpg.TooManyConnectionsError("enough")])
async def test_asyncpgs_errors_of_the_connection_are_ours(theirs: tuple[Any, Any], error: Exception) -> None:
    _, handle = theirs
    with pytest.raises(DatabaseUnavailable), handle.translated():
        raise error


async def test_asyncpgs_errors_of_a_statement_are_the_users(theirs: tuple[Any, Any]) -> None:
    _, handle = theirs
    with pytest.raises(asyncpg.DivisionByZeroError), handle.translated():
        raise asyncpg.DivisionByZeroError("in a trigger of theirs")
    with pytest.raises(RunNotFound):
        await asyncio.wait_for(handle.run(load_status(NAMESPACE, "r")), 30)
