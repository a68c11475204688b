"""A call that would wait for the very transaction it is made in is refused."""

import asyncio
import contextlib
import threading

import pytest

from action_retrier import _open_transactions as module
from action_retrier._open_transactions import opened_here, refuse_inside_transaction
from action_retrier.errors import InvalidContext

ONE, OTHER = object(), object()


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert module._open == {}


def refused(database: object) -> bool:
    try:
        refuse_inside_transaction(database)
    except InvalidContext as error:
        assert "pass the transaction's ctx" in error.remedy
        return True
    return False


def test_inside_a_transaction_the_app_is_refused() -> None:
    assert not refused(ONE)
    with opened_here(ONE):
        assert refused(ONE)
    assert not refused(ONE)


def test_another_database_has_nothing_to_do_with_it() -> None:
    with opened_here(ONE):
        assert not refused(OTHER)
        with opened_here(OTHER):
            assert refused(OTHER)
            assert refused(ONE)
        assert not refused(OTHER)
        assert refused(ONE)


def test_it_ends_with_an_error_too() -> None:
    with contextlib.suppress(ValueError), opened_here(ONE):
        raise ValueError
    assert not refused(ONE)


def test_two_on_one_database_end_one_by_one() -> None:
    with opened_here(ONE):
        with opened_here(ONE):
            pass
        assert refused(ONE)


def test_another_thread_may_wait_for_its_turn() -> None:
    seen = []
    with opened_here(ONE):
        thread = threading.Thread(target=lambda: seen.append(refused(ONE)))
        thread.start()
        thread.join()

    assert seen == [False]


async def test_tasks_are_told_apart() -> None:
    """Two tasks of one thread: the one without a transaction waits for its turn."""
    opened, done = asyncio.Event(), asyncio.Event()

    async def holder() -> bool:
        with opened_here(ONE):
            opened.set()
            await done.wait()
            return refused(ONE)

    task = asyncio.create_task(holder())
    await opened.wait()
    assert not refused(ONE)
    done.set()

    assert await task


async def test_a_task_is_not_the_thread_it_runs_in() -> None:
    with opened_here(ONE):
        assert not await asyncio.to_thread(refused, ONE)
        assert not await asyncio.create_task(asyncio.wait_for(_refused_async(ONE), 10))


async def _refused_async(database: object) -> bool:
    return refused(database)
