"""Threads that do not keep the process alive: user code that never returns must not either."""

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_pools: "weakref.WeakSet[DaemonThreads]" = weakref.WeakSet()
_IDLE_S = 5.0


def settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Tell whoever awaits a call in a thread how it has ended, if he still does; on his event loop."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class DaemonThreads:
    """
    A pool of daemon threads, started as needed.

    The pools of ``concurrent.futures`` are joined when the interpreter exits, and asyncio's own
    is shared with the user's ``to_thread`` calls, which could starve ours.
    """

    def __init__(
        self,
        size: int,
        name: str,
        *,
        idle_s: float | None = _IDLE_S,
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """
        Begin with none.

        Args:
            idle_s: A thread that has had nothing to do for so long ends; None keeps it until `close`.
            around: Entered, in the thread, around each task.
        """
        self._size = size
        self._name = name
        self._idle_s = idle_s
        self._around = around
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._tasks: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()  # taken as it is: a signal's handler might leave a Condition locked
        self._changed = threading.Condition(self._lock)
        self._threads = 0
        self._idle = 0
        self._closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """Run *call* in a thread, in this context; a cancellation does not reach it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = context.run(call)
            except StopIteration as problem:
                error = RuntimeError(f"the call raised {problem!r}")  # a future cannot carry it
            except BaseException as problem:  # noqa: BLE001 - it belongs to whoever awaits the future
                error = problem
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, future, result, error)

        self.submit(work)
        return await future

    def submit(self, task: Callable[[], None]) -> None:
        """Have a thread do *task*, which must not raise."""
        with self._lock:
            self._tasks.append(task)
            if self._idle >= len(self._tasks):
                self._changed.notify()
            elif self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def close(self) -> None:
        """Let idle threads end; busy ones end after their task."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._tasks and not self._closed and self._changed.wait(self._idle_s):
                    pass
                self._idle -= 1
                if not self._tasks:
                    self._threads -= 1
                    return
                task = self._tasks.popleft()
            with self._around():
                task()
            del task  # or the thread keeps its arguments alive while it is idle


def _begin_again_after_fork() -> None:
    # A child has none of its parent's threads, and what those had to do is not the child's.
    for pool in list(_pools):
        pool._begin()  # noqa: SLF001 - one module


os.register_at_fork(after_in_child=_begin_again_after_fork)
