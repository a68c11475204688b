"""Waiting for the writing connection: whoever gives up, is canceled or closes it leaves nobody hanging."""

import asyncio
import contextlib
import threading

import pytest

from action_retrier.drivers import Database
from action_retrier.errors import DatabaseUnavailable
from action_retrier.results import InProgress

from ..stores import LIMIT_S, Store, in_thread, until
from .turns import SHORT_S, exists, in_time, start, works

# Giving up.


def test_a_write_that_never_gets_its_turn_gives_up_and_is_not_done_later(store: Store) -> None:
    """I6: what was refused must not happen after all."""
    run_id, make = start(store)
    with (
        store.system.writer_held(store.database),
        pytest.raises(DatabaseUnavailable, match="did not become this call's turn"),
    ):
        store.database.write_sync(make, patience_s=SHORT_S)

    assert works(store)
    assert not exists(store, run_id)


async def test_an_awaited_write_that_never_gets_its_turn_gives_up(store: Store) -> None:
    run_id, make = start(store)
    with (
        store.system.writer_held(store.database),
        pytest.raises(DatabaseUnavailable, match="did not become this call's turn"),
    ):
        await in_time(store.database.write(make, patience_s=SHORT_S))

    assert works(store)
    assert not exists(store, run_id)


# Cancellation.


async def test_a_write_canceled_in_the_queue_is_not_done(store: Store) -> None:
    """I6: nobody waits for it any more, and it had not begun."""
    run_id, make = start(store)
    with store.system.writer_held(store.database):
        task = asyncio.create_task(store.database.write(make))
        await asyncio.sleep(0)
        assert store.system.waiting(store.database) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await in_time(task)
        assert store.system.waiting(store.database) == 0

    assert works(store)
    assert not exists(store, run_id)


async def test_a_neighbour_of_a_canceled_write_is_written(store: Store) -> None:
    canceled_id, canceled = start(store)
    kept_id, kept = start(store)
    with store.system.writer_held(store.database):
        tasks = [asyncio.create_task(store.database.write(make)) for make in (canceled, kept)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)

    assert await in_time(tasks[1]) == [kept_id]
    assert tasks[0].cancelled()
    assert not exists(store, canceled_id)


async def test_a_transaction_whose_task_is_canceled_inside_is_rolled_back(store: Store) -> None:
    """I6: and the cancellation goes on."""
    inside = asyncio.Event()

    async def borrower() -> None:
        async with store.database.transaction() as transaction:
            store.system.write_note(transaction.connection("sync"), "undone")
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
            store.system.write_note(transaction.connection("sync"), "one")
            store.system.write_note(transaction.connection("sync"), "two")
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
    with store.system.writer_held(store.database):

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
    with store.system.writer_held(store.database):
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
    with store.system.writer_held(other):  # opens it: whoever closes it takes the writer away
        its_writer = store.system.writer(other)

    def write_on() -> None:
        while not stop.is_set():
            run_id, make = start(store)
            try:
                its_writer.run_sync(make, None)
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
    writer = store.system.writer(store.database)
    await asyncio.to_thread(store.database.close)
    _, make = start(store)

    with pytest.raises(DatabaseUnavailable, match="has been closed"):
        await writer.run(make, SHORT_S)
    with pytest.raises(DatabaseUnavailable, match="has been closed"):
        await asyncio.to_thread(writer.run_sync, make, SHORT_S)
    store.database.open()
