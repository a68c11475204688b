"""Users' connections of psycopg's and asyncpg's: what state they are in, and what their errors mean."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest

from action_retrier._ops.control import load_status
from action_retrier._ops.starts import start_runs
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
