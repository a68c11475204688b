"""Waiting for the writing connection: whoever gives up, is canceled or closes it leaves nobody hanging."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from action_retrier._ops.control import load_status
from action_retrier._ops.starts import start_runs
from action_retrier._statements import Op
from action_retrier.drivers import Database
from action_retrier.drivers.sqlite import database as module
from action_retrier.drivers.sqlite.locks import LockFile, lock_file
from action_retrier.errors import DatabaseUnavailable, RunNotFound
from action_retrier.results import InProgress

from ..stores import LIMIT_S, NAMESPACE, Store, in_thread, until

SHORT_S = 0.05
"""A patience that runs out while a test looks on."""


@pytest.fixture
def gate(store: Store) -> LockFile:
    """What processes queue on before they write: whoever holds it keeps all others waiting."""
    path = Path(store.database.location)
    return lock_file(path.with_name(path.name + "-gate"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions for user code wait for a moment only."""
    monkeypatch.setattr(module, "_LOAN_PATIENCE_S", SHORT_S)


def start(store: Store) -> tuple[str, Callable[[], Op[Any]]]:
    one = store.starting()
    return one.id, lambda: start_runs(NAMESPACE, [one])


def exists(store: Store, run_id: str) -> bool:
    try:
        store.read(load_status, NAMESPACE, run_id)
    except RunNotFound:
        return False
    return True


def works(store: Store) -> bool:
    """Tell whether the next write is done as ever."""
    return in_thread(store.start).result(LIMIT_S) is not None


async def in_time(awaitable: Any) -> Any:
    async with asyncio.timeout(LIMIT_S):
        return await awaitable


async def until_async(is_true: Callable[[], bool]) -> None:
    await in_time(asyncio.to_thread(until, is_true))


def taken(store: Store) -> bool:
    """Tell whether the writing thread has taken up all that was queued."""
    return store.system.waiting(store.database) == 0


# Giving up.


def test_a_write_that_never_gets_its_turn_gives_up_and_is_not_done_later(store: Store) -> None:
    """I6: what was refused must not happen after all."""
    run_id, make = start(store)
    with store.transaction(), pytest.raises(DatabaseUnavailable, match="did not become this call's turn"):
        store.database.write_sync(make, patience_s=SHORT_S)

    assert works(store)
    assert not exists(store, run_id)


async def test_an_awaited_write_that_never_gets_its_turn_gives_up(store: Store) -> None:
    run_id, make = start(store)
    with store.transaction(), pytest.raises(DatabaseUnavailable, match="did not become this call's turn"):
        await in_time(store.database.write(make, patience_s=SHORT_S))

    assert works(store)
    assert not exists(store, run_id)


def borrow(database: Database) -> str:
    try:
        with database.transaction_sync() as transaction:
            return "borrowed" if transaction.is_open else "given back before it was borrowed"
    except DatabaseUnavailable:
        return "refused"


async def borrow_async(database: Database) -> str:
    try:
        async with database.transaction() as transaction:
            return "borrowed" if transaction.is_open else "given back before it was borrowed"
    except DatabaseUnavailable:
        return "refused"


def test_a_thread_gives_up_while_another_process_writes(store: Store, gate: LockFile, impatient: None) -> None:
    """Its turn has come in this process, but another one holds the gate for longer than it may wait."""
    gate.acquire()
    borrowed = in_thread(borrow, store.database)
    until(lambda: taken(store))

    assert borrowed.result(LIMIT_S) == "refused"
    gate.release()
    assert works(store)


async def test_a_task_gives_up_while_another_process_writes(store: Store, gate: LockFile, impatient: None) -> None:
    """Likewise; all callbacks of a worker wait in one such task."""
    await asyncio.to_thread(_acquire, gate)
    assert await in_time(borrow_async(store.database)) == "refused"
    gate.release()

    assert works(store)


def _acquire(gate: LockFile) -> None:
    gate.acquire()


def _hold(database: Database, free: threading.Event, inside: threading.Event) -> None:
    with database.transaction_sync():
        inside.set()
        assert free.wait(LIMIT_S)


@contextlib.contextmanager
def held(database: Database) -> Iterator[threading.Event]:
    """Hold a transaction open in another thread, until the event that is given is set or the block ends."""
    free, inside = threading.Event(), threading.Event()
    holder = in_thread(_hold, database, free, inside)
    assert inside.wait(LIMIT_S)
    try:
        yield free
    finally:
        free.set()
        holder.result(LIMIT_S)


async def test_a_transaction_that_is_handed_over_in_the_last_moment_is_kept(
    store: Store, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience runs out after the hand-over, before the task hears of it: user code must not get a dead one."""
    loop = asyncio.get_running_loop()
    handed_over = threading.Event()
    deliver = loop.call_soon_threadsafe

    def noticed(*args: Any, **kwargs: Any) -> Any:
        handle = deliver(*args, **kwargs)
        handed_over.set()
        return handle

    with held(store.database) as free:
        task = asyncio.create_task(borrow_async(store.database))
        await asyncio.sleep(0)
        monkeypatch.setattr(loop, "call_soon_threadsafe", noticed)

        def outlast_its_patience() -> None:
            threading.Event().wait(2 * SHORT_S)
            loop.call_soon(let_it_have_its_turn)

        def let_it_have_its_turn() -> None:
            # The loop has the time-out in its hands by now, and gets the hand-over behind it.
            free.set()
            assert handed_over.wait(LIMIT_S)

        loop.call_soon(outlast_its_patience)
        assert await in_time(task) == "borrowed"

    assert works(store)


# Cancellation.


async def test_a_write_canceled_in_the_queue_is_not_done(store: Store) -> None:
    """I6: nobody waits for it any more, and it had not begun."""
    run_id, make = start(store)
    with held(store.database):
        task = asyncio.create_task(store.database.write(make))
        await asyncio.sleep(0)
        assert store.system.waiting(store.database) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(task)
        assert store.system.waiting(store.database) == 0

    assert works(store)
    assert not exists(store, run_id)


async def test_a_write_canceled_while_other_processes_keep_it_waiting_is_not_done(store: Store, gate: LockFile) -> None:
    """I6: its turn has come in this process, and not among all."""
    run_id, make = start(store)
    await asyncio.to_thread(_acquire, gate)
    task = asyncio.create_task(store.database.write(make))
    await asyncio.sleep(0)
    await until_async(lambda: taken(store))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(task)
    gate.release()

    assert works(store)
    assert not exists(store, run_id)


def test_a_write_that_other_processes_keep_waiting_gives_up_as_well(store: Store, gate: LockFile) -> None:
    """A process that was stopped while it held the gate must not keep others for longer than they may wait."""
    run_id, make = start(store)
    gate.acquire()
    with pytest.raises(DatabaseUnavailable, match="did not become this call's turn"):
        store.database.write_sync(make, patience_s=SHORT_S)
    gate.release()

    assert works(store)
    assert not exists(store, run_id)


async def test_a_neighbour_of_a_canceled_write_is_written(store: Store) -> None:
    canceled_id, canceled = start(store)
    kept_id, kept = start(store)
    with held(store.database):
        tasks = [asyncio.create_task(store.database.write(make)) for make in (canceled, kept)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)

    assert await in_time(tasks[1]) == [kept_id]
    assert tasks[0].cancelled()
    assert not exists(store, canceled_id)


@pytest.mark.parametrize("when", ["queued", "waiting for other processes", "handed over"])
async def test_a_canceled_wait_for_a_transaction_leaves_it_to_nobody(
    store: Store, gate: LockFile, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The transaction that nobody will use is rolled back at once, and the next one has its turn."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        if when == "waiting for other processes":
            await asyncio.to_thread(_acquire, gate)
            stack.callback(gate.release)
        else:
            free = stack.enter_context(held(store.database))
        task = asyncio.create_task(borrow_async(store.database))
        await asyncio.sleep(0)
        if when == "waiting for other processes":
            await until_async(lambda: taken(store))
        if when == "handed over":
            handed_over = threading.Event()
            deliver = loop.call_soon_threadsafe
            monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (deliver(*args), handed_over.set()))
            free.set()
            # Without letting the loop run: the task has not heard of it yet.
            assert handed_over.wait(LIMIT_S)
            monkeypatch.undo()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(task)

    assert works(store)


async def test_a_transaction_whose_task_is_canceled_inside_is_rolled_back(store: Store) -> None:
    """I6: and the cancellation goes on."""
    inside = asyncio.Event()

    async def borrower() -> None:
        async with store.database.transaction() as transaction:
            store.system.write_note(transaction.connection, "undone")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(borrower())
    await in_time(inside.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(task)

    assert works(store)
    assert store.system.notes() == []


async def test_a_transaction_whose_task_is_canceled_at_its_commit_is_committed_whole(store: Store) -> None:
    """I6: it had asked for the commit; what is not known is only whether it heard of it."""
    leaving = asyncio.Event()

    async def borrower() -> None:
        async with store.database.transaction() as transaction:
            store.system.write_note(transaction.connection, "one")
            store.system.write_note(transaction.connection, "two")
            asyncio.get_running_loop().call_soon(leaving.set)

    task = asyncio.create_task(borrower())
    await in_time(leaving.wait())
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await in_time(task)

    assert works(store)
    assert store.system.notes() in (["one", "two"], [])


async def test_a_loop_that_is_gone_holds_nothing_up(store: Store) -> None:
    """Whoever waited is gone with its loop; the job is done, and the next one has its turn."""
    run_id, make = start(store)
    with held(store.database):

        def abandon() -> None:
            loop = asyncio.new_event_loop()
            task = loop.create_task(store.database.write(make))
            loop.run_until_complete(asyncio.sleep(0))
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.close()

        in_thread(abandon).result(LIMIT_S)

    assert works(store)
    assert exists(store, run_id)


# Closing.


def test_what_is_queued_when_the_database_closes_is_written_first(store: Store) -> None:
    """I1: whoever was told nothing yet is told the truth."""
    made = [start(store) for _ in range(20)]
    with held(store.database):
        futures = [in_thread(store.database.write_sync, make) for _, make in made]
        until(lambda: store.system.waiting(store.database) == len(made))
        closing = in_thread(store.database.close)
    closing.result(LIMIT_S)

    assert [future.result(LIMIT_S) for future in futures] == [[run_id] for run_id, _ in made]
    assert len(store.system.table("runs")) == 20


def test_closing_while_others_write_hangs_nobody(store: Store, other: Database) -> None:
    """Each write is done, or refused; what was refused has not been done."""
    stop = threading.Event()
    done: list[str] = []
    refused: list[str] = []

    def write_on() -> None:
        while not stop.is_set():
            run_id, make = start(store)
            try:
                other._current_writer.run_sync(make, None)  # type: ignore[attr-defined]
                done.append(run_id)
            except (DatabaseUnavailable, AssertionError):
                refused.append(run_id)
                return

    writers = [in_thread(write_on) for _ in range(4)]
    until(lambda: len(done) >= 20)
    in_thread(other.close).result(LIMIT_S)
    stop.set()
    for writer in writers:
        writer.result(LIMIT_S)

    there = {row["id"] for row in store.system.table("runs")}
    assert set(done) == there
    assert not set(refused) & there


def test_a_write_after_closing_opens_again(store: Store) -> None:
    """A database that was closed is opened by its next use."""
    store.database.close()
    run_id, make = start(store)

    assert store.database.write_sync(make) == [run_id]
    assert store.status(run_id) == InProgress()


async def test_a_writer_that_is_closed_says_so(store: Store) -> None:
    """Whoever still holds it is told, and no timer of his is left behind."""
    writer = store.database._current_writer  # type: ignore[attr-defined]
    await asyncio.to_thread(store.database.close)
    _, make = start(store)

    with pytest.raises(DatabaseUnavailable, match="has been closed"):
        await writer.run(make, SHORT_S)
    with pytest.raises(DatabaseUnavailable, match="has been closed"):
        await asyncio.to_thread(writer.run_sync, make, SHORT_S)
    store.database.open()
