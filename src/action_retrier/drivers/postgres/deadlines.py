"""Limits on how long a connection may keep us waiting, whatever it waits for."""

import contextlib
import heapq
import itertools
import os
import socket
import threading
import time
from typing import Any

import psycopg


class _Watch:
    """One limit, from its making to the end of its block."""

    __slots__ = ("_lock", "connection")

    def __init__(
        self,
        connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]",
        lock: contextlib.AbstractContextManager[Any],
    ) -> None:
        self.connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any] | None = connection
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with self._lock:  # not in the midst of cutting it: its descriptor may soon be another connection's
            self.connection = None  # it must not be kept open by whoever has forgotten it


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
        self._watches: list[tuple[float, int, _Watch]] = []
        self._order = itertools.count()
        # As it is, not through the Condition: written in Python, that might be left locked by a signal's handler.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def within(
        self, seconds: float, connection: "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]"
    ) -> contextlib.AbstractContextManager[None]:
        """Cut *connection* unless the block that is entered with this ends within *seconds*."""
        until_s = time.monotonic() + seconds
        with self._lock:
            watch = _Watch(connection, self._lock)
            first = not self._watches or self._watches[0][0] > until_s
            heapq.heappush(self._watches, (until_s, next(self._order), watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="action-retrier-deadlines", daemon=True)
                self._thread.start()
            elif first:
                self._changed.notify()
        return watch

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._watches and (
                    self._watches[0][2].connection is None or self._watches[0][0] <= time.monotonic()
                ):
                    _, _, watch = heapq.heappop(self._watches)
                    if watch.connection is not None:
                        cut(watch.connection)
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
