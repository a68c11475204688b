"""Limits on how long a connection may keep us waiting, whatever it waits for."""

import contextlib
import heapq
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg


class Limit:
    """One limit, from its making to its end, or that of the block that is entered with it."""

    __slots__ = ("_changed", "passed")

    def __init__(self, passed: Callable[[], None], changed: threading.Condition) -> None:
        self.passed: Callable[[], None] | None = passed
        self._changed = changed

    def end(self) -> None:
        """Limit nothing any more."""
        with self._changed:  # not in the midst of cutting a connection: its descriptor may soon be another's
            self.passed = None  # what it refers to must not be kept by whoever has forgotten it

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.end()


class Deadlines:
    """
    Cuts connections that do not answer in time.

    A server that was stopped, or a network that swallows packets, keeps the socket open and says
    nothing: neither TCP nor libpq notices for minutes. The thread here shuts the socket down, and
    whoever waits on it, a thread or an event loop, sees the connection fail.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Watch nothing; also in a forked child, whose parent's connections are the parent's to cut."""
        self._watches: list[tuple[float, int, Limit]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def within(
        self, seconds: float, connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]"
    ) -> contextlib.AbstractContextManager[None]:
        """Cut *connection* unless the block that is entered with this ends within *seconds*."""
        return self.limit(seconds, partial(cut, connection))

    def limit(self, seconds: float, passed: Callable[[], None]) -> Limit:
        """Call *passed*, in a thread of its own and briefly, unless the limit is ended within *seconds*."""
        until_s = time.monotonic() + seconds
        with self._changed:
            limit = Limit(passed, self._changed)
            first = not self._watches or self._watches[0][0] > until_s
            heapq.heappush(self._watches, (until_s, next(self._order), limit))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="action-retrier-deadlines", daemon=True)
                self._thread.start()
            elif first:
                self._changed.notify()
        return limit

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._watches and (self._watches[0][2].passed is None or self._watches[0][0] <= time.monotonic()):
                    _, _, limit = heapq.heappop(self._watches)
                    if limit.passed is not None:
                        limit.passed()
                wait_s = self._watches[0][0] - time.monotonic() if self._watches else None
                self._changed.wait(wait_s)


def cut(connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]") -> None:
    """Make a connection fail, for whoever waits on it."""
    with contextlib.suppress(OSError, psycopg.Error):
        copy = socket.socket(fileno=os.dup(connection.pgconn.socket))
        try:
            copy.shutdown(socket.SHUT_RDWR)
        finally:
            copy.close()


deadlines = Deadlines()
"""The one of this process."""
os.register_at_fork(after_in_child=deadlines.begin)
