"""A pool of daemon threads: started as needed, and what comes of a call comes back."""

import asyncio
import contextvars
import gc
import threading
import weakref
from typing import Any

import pytest

from action_retrier._threads import DaemonThreads

NAME = "threads-under-test"


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture
def threads():
    pool = DaemonThreads(3, NAME)
    yield pool
    pool.close()
    for thread in alive():
        thread.join(30)
    assert alive() == []


async def test_a_call_returns_what_it_returns(threads: DaemonThreads) -> None:
    assert await threads.run(lambda: 7) == 7
    assert await threads.run(lambda: None) is None


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_a_call_raises_what_it_raises(threads: DaemonThreads, error: BaseException) -> None:
    """Whatever it is: the thread lives on."""

    def fail() -> None:
        raise error

    # A SystemExit that leaves a task would end the loop: caught in the task, as those who use this do.
    with pytest.raises(type(error)) as caught:
        await threads.run(fail)

    assert caught.value is error
    assert await threads.run(lambda: 1) == 1


async def test_a_stop_iteration_cannot_be_carried_and_is_told_as_another(threads: DaemonThreads) -> None:
    def fail() -> None:
        raise StopIteration(7)

    with pytest.raises(RuntimeError, match=r"StopIteration\(7\)"):
        await threads.run(fail)


async def test_a_call_runs_in_the_callers_context(threads: DaemonThreads) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("the caller's")

    def look() -> str:
        seen = variable.get()
        variable.set("the thread's own")
        return seen

    assert await threads.run(look) == "the caller's"
    assert variable.get() == "the caller's"


async def test_threads_are_daemons_started_as_needed_and_used_again(threads: DaemonThreads) -> None:
    """They must not keep a process alive, nor be more than were asked for."""
    assert alive() == []
    for _ in range(5):
        await threads.run(lambda: None)
    assert 1 <= len(alive()) <= 3
    assert all(thread.daemon for thread in alive())


async def test_no_more_threads_than_allowed_and_nothing_waits_in_vain(threads: DaemonThreads) -> None:
    free, running = threading.Event(), threading.Semaphore(0)
    most = []

    def wait(number: int) -> int:
        running.release()
        most.append(len(alive()))
        assert free.wait(30)
        return number

    tasks = [asyncio.create_task(threads.run(lambda number=number: wait(number))) for number in range(10)]
    for _ in range(3):
        assert await asyncio.to_thread(running.acquire, timeout=30)
    assert not running.acquire(blocking=False)
    free.set()

    assert await asyncio.gather(*tasks) == list(range(10))
    assert max(most) == 3


async def test_a_cancellation_does_not_reach_the_call(threads: DaemonThreads) -> None:
    """A thread cannot be canceled; whoever waited is, and the result is dropped."""
    free, begun, ended = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert free.wait(30)
        ended.set()

    task = asyncio.create_task(threads.run(wait))
    assert await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    free.set()

    assert await asyncio.to_thread(ended.wait, 30)
    assert await threads.run(lambda: 1) == 1


def test_a_loop_that_is_gone_is_no_error(threads: DaemonThreads) -> None:
    free, begun, ended = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert free.wait(30)

    async def begin() -> None:
        task = asyncio.ensure_future(threads.run(wait))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()

    asyncio.run(begin())
    free.set()
    threads.submit(ended.set)

    assert ended.wait(30)


async def test_an_idle_thread_keeps_nothing_alive(threads: DaemonThreads) -> None:
    class Large:
        """What a call holds on to."""

    large = Large()
    gone = weakref.ref(large)
    await threads.run(lambda held=large: held is not None)
    del large
    gc.collect()
    for _ in range(100):
        if gone() is None:
            break
        await threads.run(lambda: None)
        gc.collect()

    assert gone() is None


def test_closing_lets_idle_threads_end(threads: DaemonThreads) -> None:
    done = threading.Event()
    threads.submit(done.set)
    assert done.wait(30)
    (thread,) = alive()

    threads.close()
    thread.join(30)

    assert not thread.is_alive()


def test_what_is_submitted_after_closing_is_still_done(threads: DaemonThreads) -> None:
    """A pool that is closed keeps no thread; it does not lose what it is given."""
    threads.close()
    done: list[Any] = []
    ended = threading.Event()
    threads.submit(lambda: done.append(1))
    threads.submit(ended.set)

    assert ended.wait(30)
    for thread in alive():
        thread.join(30)
    assert done == [1]
