"""Waiting for SQLite's one writing connection: lent to transactions, and behind the gate that processes queue on."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from action_retrier.drivers import Database
from action_retrier.drivers.sqlite import database as module
from action_retrier.drivers.sqlite.locks import LockFile, lock_file
from action_retrier.errors import DatabaseUnavailable

from ..stores import LIMIT_S, Store, in_thread, until
from .turns import SHORT_S, exists, in_time, start, taken, until_async, works


@pytest.fixture
def gate(store: Store) -> LockFile:
    """What processes queue on before they write: whoever holds it keeps all others waiting."""
    path = Path(store.database.location)
    return lock_file(path.with_name(path.name + "-gate"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions for user code wait for a moment only."""
    monkeypatch.setattr(module, "_LOAN_PATIENCE_S", SHORT_S)


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
    gate.acquire(gate)
    borrowed = in_thread(borrow, store.database)
    until(lambda: taken(store))

    assert borrowed.result(LIMIT_S) == "refused"
    gate.release(gate)
    assert works(store)


async def test_a_task_gives_up_while_another_process_writes(store: Store, gate: LockFile, impatient: None) -> None:
    """Likewise; all callbacks of a worker wait in one such task."""
    await asyncio.to_thread(_acquire, gate)
    assert await in_time(borrow_async(store.database)) == "refused"
    gate.release(gate)

    assert works(store)


def _acquire(gate: LockFile) -> None:
    gate.acquire(gate)


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
    gate.release(gate)

    assert works(store)
    assert not exists(store, run_id)


def test_a_write_that_other_processes_keep_waiting_gives_up_as_well(store: Store, gate: LockFile) -> None:
    """A process that was stopped while it held the gate must not keep others for longer than they may wait."""
    run_id, make = start(store)
    gate.acquire(gate)
    with pytest.raises(DatabaseUnavailable, match="did not become this call's turn"):
        store.database.write_sync(make, patience_s=SHORT_S)
    gate.release(gate)

    assert works(store)
    assert not exists(store, run_id)


@pytest.mark.parametrize("when", ["queued", "waiting for other processes", "handed over"])
async def test_a_canceled_wait_for_a_transaction_leaves_it_to_nobody(
    store: Store, gate: LockFile, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The transaction that nobody will use is rolled back at once, and the next one has its turn."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        if when == "waiting for other processes":
            await asyncio.to_thread(_acquire, gate)
            stack.callback(gate.release, gate)
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
