"""
Let go of what was forgotten: connections and threads of an object that nobody holds any more.

The garbage collector may notice that at any moment, in any thread, which may hold any lock. So it
only leaves word, and a thread that holds nothing does the work, which may wait.
"""

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from .config import logger

_forgotten: "SimpleQueue[Ending]" = SimpleQueue()  # its put is safe inside a garbage collection
_pending: "set[Ending]" = set()
_lock = threading.Lock()
_thread: threading.Thread | None = None


class Ending:
    """What is done once: when `now` is called, when *owner* is forgotten, or when the interpreter ends."""

    def __init__(self, owner: object, end: Callable[[], None]) -> None:
        """
        Begin to watch.

        Args:
            owner: Whose end is meant.
            end: What is done; must not refer to *owner*, which would then be remembered.
        """
        self._end = end
        self._is_left = threading.Lock()
        with _lock:
            _pending.add(self)
            _start()
        self._finalizer = weakref.finalize(owner, _forgotten.put, self)
        self._finalizer.atexit = False

    def now(self) -> None:
        """Do it, unless it has been done."""
        self._finalizer.detach()
        if self._is_left.acquire(blocking=False):
            with _lock:
                _pending.discard(self)
            self._end()


def _start() -> None:
    global _thread  # noqa: PLW0603 - one for the process
    if _thread is None:
        _thread = threading.Thread(target=_work, name="action-retrier-endings", daemon=True)
        _thread.start()


def _work() -> None:
    while True:
        try:
            _forgotten.get().now()
        except Exception:  # noqa: BLE001 - the thread's boundary: one that fails must not keep the next from its end
            logger.exception("unexpected error while letting go of a database")


def _end_all() -> None:
    for ending in list(_pending):
        ending.now()


def _forget_after_fork() -> None:
    # What our parent has open is our parent's to let go of.
    global _forgotten, _pending, _lock, _thread
    _forgotten, _pending, _lock, _thread = SimpleQueue(), set(), threading.Lock(), None


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forget_after_fork)
