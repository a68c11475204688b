"""
Who uses the connections of a database right now; a fork waits until nobody does, and they are closed.

SQLite remembers, for the process, which locks its connections hold. A forked child inherits the
memory and not the locks: it would believe that it holds them, and write into files that its parent
may delete. With no connection open at the fork there is nothing to remember.
"""

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from ...config import logger

_PATIENCE_S = 5.0
_all: "weakref.WeakSet[Users]" = weakref.WeakSet()


class Users:
    """The threads that use connections of one database."""

    def __init__(self) -> None:
        self._closing: list[Callable[[], None]] = []
        self._reset()
        self._is_forking = False
        self.was_forked_open = False
        """In a child: its parent had a connection open at the fork, so that none may be opened here."""
        _all.add(self)

    def _reset(self) -> None:
        self._inside: set[object] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def on_fork(self, close: Callable[[], None]) -> None:
        """Have *close* called when nobody uses a connection, before a fork. They are opened again as needed."""
        self._closing.append(close)

    @contextlib.contextmanager
    def using(self, user: object = None) -> Iterator[None]:
        """
        Use connections inside; a fork waits, and who comes during one waits for its end.

        Args:
            user: By whom they are used, for whoever has to `leave` if that is cut short.
        """
        user = user or object()
        try:
            with self._lock:
                while self._is_forking:
                    self._changed.wait()
                self._inside.add(user)
            yield
        finally:
            self.leave(user)

    def leave(self, user: object) -> None:
        """Use no connections any more; nothing, if that is so already."""
        with self._lock:
            if user in self._inside:
                self._inside.remove(user)
                self._changed.notify_all()

    def before_fork(self, give_up_at_s: float) -> None:
        """Let nobody begin, wait for those who have begun, and close everything."""
        self._changed.acquire()
        self._is_forking = True
        if self._changed.wait_for(lambda: not self._inside, max(0.0, give_up_at_s - time.monotonic())):
            for close in self._closing:
                close()
        else:
            self.was_forked_open = True
            logger.warning("a process is forked while a transaction is open: the child cannot use this database")

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._is_forking = self.was_forked_open = False
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: none of the threads is here."""
        self._reset()
        self._is_forking = False


_forking: list[Users] = []


def _before_fork() -> None:
    give_up_at_s = time.monotonic() + _PATIENCE_S
    _forking.extend(_all)
    for users in _forking:
        users.before_fork(give_up_at_s)


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().after_fork_in_parent()


def _after_fork_in_child() -> None:
    while _forking:
        _forking.pop().after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
