"""Wake-ups between processes: NOTIFY while somebody sleeps, none under load, and everything right without."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from action_retrier._ops.claims import Claimant
from action_retrier._ops.control import cancel_run, retry_run
from action_retrier._ops.starts import start_runs
from action_retrier._statements import Op, Statement
from action_retrier.drivers import Database, Subscription, open_database
from action_retrier.drivers.postgres import listener
from action_retrier.drivers.postgres.connection import channel
from action_retrier.drivers.postgres.line import Line
from action_retrier.errors import DatabaseUnavailable

from ..stores import LIMIT_S, NAMESPACE, PostgresSystem, Store, in_thread, until


class Sleeper:
    """A worker that has something to be woken by."""

    def __init__(self, store: Store, database: Database | None = None) -> None:
        self.worker: Claimant = store.worker("charge", mutations=("done",))
        self._woken = threading.Event()
        self.subscription: Subscription = (database or store.database).changes.subscribe(self._woken.set)
        self.subscription.active = True

    def tune(self, *, busy: bool = False) -> float | None:
        return asyncio.run(self.subscription.tune(self.worker.id, busy=busy))

    def is_woken(self) -> bool:
        woken = self._woken.wait(LIMIT_S)
        self._woken.clear()
        return woken

    def settle(self) -> None:
        self._woken.clear()


@pytest.fixture
def other(store: Store) -> Database:
    """The database as another process has it open."""
    return store.system.open(store.clock)


@pytest.fixture
def sleeper(store: Store) -> Iterator[Sleeper]:
    sleeper = Sleeper(store)
    yield sleeper
    sleeper.subscription.close()


class Ear:
    """Hears what is notified, and knows when there was nothing."""

    def __init__(self, system: PostgresSystem) -> None:
        self._channel = channel(system.schema)
        self._connection: psycopg.Connection[Any] = system.connect(autocommit=True)
        self._connection.execute(f'LISTEN "{self._channel}"'.encode())

    def heard(self) -> int:
        """Return how many notifications have come since."""
        # What is committed earlier is delivered earlier.
        self._connection.execute("SELECT pg_notify(%s, 'the end')", (self._channel,))
        for count, one in enumerate(self._connection.notifies(timeout=LIMIT_S)):
            if one.payload == "the end":
                return count
        raise AssertionError("not even the last one came")


@pytest.fixture
def ear(system: PostgresSystem) -> Ear:
    return Ear(system)


def renew_nothing() -> Op[None]:
    """Commit something that makes nothing due."""
    yield Statement("update_worker", {"id": "nobody", "actions": "[]", "mutations": "[]"})


def start(store: Store, database: Database) -> str:
    started = store.starting()
    database.write_sync(lambda: start_runs(NAMESPACE, [started]))
    return started.id


def test_a_start_of_another_process_wakes_who_sleeps(store: Store, sleeper: Sleeper, other: Database) -> None:
    assert sleeper.tune() is None
    sleeper.settle()

    start(store, other)

    assert sleeper.is_woken()
    assert sleeper.subscription.was_told


async def hear_on_loop(store: Store, subscription: Subscription, worker: str) -> None:
    """Have this loop hear: not at once, where somebody uses the line just then."""
    line = store.database.changes.line  # type: ignore[attr-defined]
    async with asyncio.timeout(LIMIT_S):
        while line._reading is None:
            await subscription.tune(worker, busy=False)
            await asyncio.sleep(0)


def test_a_loop_hears_by_itself(store: Store, other: Database) -> None:
    """To be woken by a thread would take longer than the rest."""
    callers = []
    worker = store.worker("charge").id

    async def sleep() -> None:
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            callers.append(threading.current_thread())
            loop.call_soon_threadsafe(woken.set)

        subscription = store.database.changes.subscribe(wake)
        subscription.active = True
        await hear_on_loop(store, subscription, worker)
        await asyncio.sleep(0)
        callers.clear()  # of its own commits
        woken.clear()
        ended = in_thread(start, store, other)
        async with asyncio.timeout(LIMIT_S):
            await woken.wait()
        ended.result(LIMIT_S)
        subscription.close()

    asyncio.run(sleep())
    assert callers == [threading.current_thread()]


def test_a_line_that_breaks_is_opened_anew_while_the_loop_that_hears_on_it_is_blocked(store: Store) -> None:
    """Its advisory lock is what tells the others that this worker lives."""
    line = store.database.changes.line  # type: ignore[attr-defined]
    loop = asyncio.new_event_loop()
    subscription = store.database.changes.subscribe(lambda: None)
    worker = store.worker("charge").id
    loop.run_until_complete(hear_on_loop(store, subscription, worker))
    broken = line._connection

    with store.system.connect(autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", [broken.info.backend_pid])

    until(lambda: line._connection is not broken and line._connection is not None and not line._connection.closed)
    loop.run_until_complete(hear_on_loop(store, subscription, worker))
    assert line._reading.connection is line._connection
    subscription.close()
    store.database.close()
    loop.close()


def test_a_commit_here_wakes_and_is_not_taken_for_a_start(store: Store, sleeper: Sleeper) -> None:
    """It may as well be a report: only what others have said of a start is worth a claim without a question."""
    sleeper.tune()
    sleeper.settle()

    store.write(renew_nothing)

    assert sleeper.is_woken()
    assert not sleeper.subscription.was_told


def test_a_start_that_comes_with_the_answer_to_something_else_is_heard(
    store: Store, sleeper: Sleeper, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever uses the line takes from its socket what has come: nobody else will find it readable."""
    sleeper.tune()
    line = store.database.changes.line  # type: ignore[attr-defined]
    with line.connection() as connection:
        start(store, other)
        sleeper.settle()
        until(lambda: connection.execute("SELECT 1").fetchall() and sleeper.is_woken())


def test_a_start_in_a_users_transaction_wakes_at_its_commit(store: Store, sleeper: Sleeper, ear: Ear) -> None:
    """I6: before that there is nothing to find, and after a rollback there never will be."""
    sleeper.tune()
    with store.system.connect() as connection:
        executor = store.database.executor(connection, writes=True)
        executor.run_sync(start_runs(NAMESPACE, [store.starting()]))
        assert ear.heard() == 0
    assert ear.heard() == 1

    with store.system.connect() as connection:
        executor = store.database.executor(connection, writes=True)
        executor.run_sync(start_runs(NAMESPACE, [store.starting()]))
        connection.rollback()
    assert ear.heard() == 0


def test_whatever_makes_something_due_wakes(store: Store, sleeper: Sleeper, other: Database, ear: Ear) -> None:
    sleeper.tune()
    run_id = store.start(on_complete="done", delay_ms=60_000)
    ear.heard()

    other.write_sync(lambda: cancel_run(NAMESPACE, run_id))
    assert ear.heard() == 1  # its callback is pending

    plain = store.start()
    other.write_sync(lambda: cancel_run(NAMESPACE, plain))
    ear.heard()
    other.write_sync(lambda: retry_run(NAMESPACE, plain))
    assert ear.heard() == 1


def test_nobody_is_notified_unless_somebody_has_asked_for_it(store: Store, sleeper: Sleeper, ear: Ear) -> None:
    """A NOTIFY takes a lock that there is one of in the whole server."""
    store.start()

    assert ear.heard() == 0


def test_under_load_nobody_is_notified(store: Store, sleeper: Sleeper, ear: Ear) -> None:
    """A worker that has more to do than it can take finds the rest by itself."""
    sleeper.tune()
    store.start()
    assert ear.heard() == 1

    assert sleeper.tune(busy=True) == listener._LOOK_S
    store.start()
    assert ear.heard() == 0


def test_after_load_a_worker_asks_again(store: Store, sleeper: Sleeper, ear: Ear) -> None:
    sleeper.tune(busy=True)
    assert sleeper.tune() == listener._LOOK_S  # not at once: each change of mind is a write

    until(lambda: sleeper.tune() is None)

    store.start()
    assert ear.heard() == 1


def test_a_worker_that_is_told_too_often_looks_by_itself(
    store: Store, sleeper: Sleeper, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_MOST_PER_S", 3)
    sleeper.tune()
    until(lambda: bool(store.start()) and len(sleeper.subscription._heard) > 3)

    assert sleeper.tune() == listener._LOOK_S
    ear.heard()
    store.start()

    assert ear.heard() == 0


@pytest.mark.parametrize("switch", ["notify=false", "direct=false"])
def test_without_notifications_nothing_is_asked_for(store: Store, ear: Ear, switch: str) -> None:
    database = open_database(f"{store.system.url}&{switch}", clock=store.clock, auto_migrate=True)
    sleeper = Sleeper(store, database)

    assert sleeper.tune() is None
    start(store, database)

    assert ear.heard() == 0
    assert sleeper.is_woken()  # within its own process it costs nothing
    assert [row["is_idle"] for row in store.system.table("workers")] == [False]
    sleeper.subscription.close()
    database.close()


def test_a_line_that_broke_is_opened_again_and_hears(store: Store, sleeper: Sleeper, other: Database) -> None:
    """What was told meanwhile is lost, so whoever sleeps looks once more."""
    sleeper.tune()
    sleeper.settle()
    line = store.database.changes.line
    with line.connection() as connection:
        pid = connection.info.backend_pid
    with store.system.connect(autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
    assert sleeper.is_woken()
    sleeper.settle()

    start(store, other)

    assert sleeper.is_woken()
    with line.connection() as connection:
        assert connection.info.backend_pid != pid


def test_a_line_listens_once(store: Store) -> None:
    """... and not at all after its end."""
    lines = [Line(store.database._target, heard=lambda: None) for _ in range(2)]  # type: ignore[attr-defined]
    for line in lines:
        line.listen()
    with lines[0].connection() as connection:
        lines[0].listen()
        assert [row["channel"] for row in connection.execute("SELECT pg_listening_channels() AS channel")] == [
            channel(store.system.schema)  # type: ignore[attr-defined]
        ]
    lines[1].close()
    lines[1].listen()
    assert lines[1]._connection is None
    lines[0].close()


def test_a_line_that_cannot_hear_is_not_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took no notice of starts would be worse than none: its connection is closed, and another is tried."""
    line = Line(store.database._target, heard=lambda: None)  # type: ignore[attr-defined]
    opened = []

    def fail(connection: Any) -> None:
        opened.append(connection)
        raise psycopg.OperationalError("the server is going down")

    with monkeypatch.context() as patch:
        patch.setattr(line, "_listen_on", fail)
        line.listen()
        with pytest.raises(DatabaseUnavailable), line.connection():
            pass
    assert opened
    assert all(connection.closed for connection in opened)

    with line.connection() as connection:
        assert connection.execute("SELECT 1 AS one").fetchall() == [{"one": 1}]
    line.close()


def test_a_line_that_was_never_open_lets_go_of_nothing(store: Store) -> None:
    line = Line(store.database._target, heard=lambda: None)  # type: ignore[attr-defined]

    line.unlock(7)

    assert line._connection is None


def test_a_socket_that_was_closed_meanwhile_is_not_waited_for(store: Store) -> None:
    """Whoever watches has looked at the connection a moment before somebody else closed it."""
    line = Line(store.database._target, heard=lambda: None)  # type: ignore[attr-defined]

    line._wait_for(-1, None)
