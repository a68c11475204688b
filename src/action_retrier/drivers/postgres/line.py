"""One session of the server's that stays open: its advisory locks prove that we live, and it hears notifications."""

import contextlib
import os
import selectors
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from ..._clock import boot_time_us
from ...config import logger
from ...errors import DatabaseUnavailable
from .connection import CALL_S, LONGEST_PAUSE_S, SHORTEST_PAUSE_S, channel, connect, translated
from .deadlines import deadlines
from .urls import Target

_RETAKE_S = 0.2  # well within the second after which a free lock means a death


class Line:
    """
    A connection that threads share for short calls.

    On a direct one a thread of its own watches it: it passes on what is notified, and opens it
    anew as soon as it breaks, so that a worker is not taken for dead because its lock is gone.
    """

    def __init__(self, target: Target, *, heard: Callable[[], None]) -> None:
        """
        Begin closed.

        Args:
            heard: Called, from the thread that watches, when a notification has come or may have been missed.
        """
        self._target = target
        self._heard = heard
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._locks: set[int] = set()
        self._held: set[int] = set()
        self._was_open = False
        self._reopened_at_us: int | None = None
        self.is_listening = False
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = -1, -1

    @property
    def is_direct(self) -> bool:
        """Whether the session is ours alone, so that its locks mean something: not behind a pooler."""
        return self._target.direct

    @property
    def can_listen(self) -> bool:
        """Whether it can hear notifications."""
        return self._target.notify and self.is_direct

    def is_steady(self, for_us: int) -> bool:
        """Tell whether it is open, and has not been opened anew within *for_us*."""
        connection, reopened_at_us = self._connection, self._reopened_at_us
        is_open = connection is not None and not connection.closed
        return is_open and (reopened_at_us is None or boot_time_us() - reopened_at_us >= for_us)

    def lock(self, key: int) -> None:
        """Hold an advisory lock from now on, over reconnections."""
        with self._lock:
            self._locks.add(key)
            with self.connection() as connection:
                self._take(connection, key)
            self._begin_to_watch()

    def unlock(self, key: int) -> None:
        """Hold it no longer."""
        with self._lock:
            self._locks.discard(key)
            self._held.discard(key)
            if self._connection is not None and self.is_direct:
                with contextlib.suppress(DatabaseUnavailable), self.connection() as connection:
                    connection.execute("SELECT pg_advisory_unlock(%s)", (key,))

    def holds(self, key: int) -> bool:
        """Tell whether a lock is ours now: a session before this one may have it still."""
        return key in self._held

    def listen(self) -> None:
        """Hear notifications from now on."""
        with self._lock:
            if self.is_listening or self._stopping.is_set():
                return
            self.is_listening = True  # from here on whoever opens the connection listens on it
            with contextlib.suppress(DatabaseUnavailable), self.connection() as connection:
                self._listen_on(connection)
            self._begin_to_watch()

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Use the connection; it is opened anew if need be, and then holds what it held."""
        with self._lock:
            connection = self._connection
            if connection is None or connection.closed:
                connection = self._open()
            try:
                with translated(self._target), deadlines.within(CALL_S, connection):
                    yield connection
            except DatabaseUnavailable:
                self._drop()
                raise

    def _open(self) -> psycopg.Connection[Any]:
        connection = connect(self._target)
        connection.add_notify_handler(lambda _: self._heard())  # what comes with the answer to something else
        self._held.clear()
        try:
            with translated(self._target), deadlines.within(CALL_S, connection):
                for key in self._locks:
                    self._take(connection, key)
                if self.is_listening:
                    self._listen_on(connection)
        except BaseException:
            connection.close()
            raise
        if self._was_open:
            self._reopened_at_us = boot_time_us()
        self._connection, self._was_open = connection, True
        self._poke()
        return connection

    def _take(self, connection: psycopg.Connection[Any], key: int) -> None:
        if self.is_direct and key not in self._held:
            # Nobody else takes it: ids are unique. A session of ours that the server has not given up yet may
            # still hold it, which is as good as long as it lasts: whoever watches takes it then.
            (row,) = connection.execute("SELECT pg_try_advisory_lock(%s) AS is_ours", (key,)).fetchall()
            if row["is_ours"]:
                self._held.add(key)

    def _listen_on(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(f'LISTEN "{channel(self._target.schema)}"'.encode())

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()
            self._poke()  # whoever waits for a socket does not hear that it was closed

    # Watching.

    def _begin_to_watch(self) -> None:
        if self._thread is None and self.is_direct and not self._stopping.is_set():
            self._wake_read, self._wake_write = os.pipe()
            self._thread = threading.Thread(target=self._watch, name="action-retrier-line", daemon=True)
            self._thread.start()

    def _poke(self) -> None:
        if self._wake_write >= 0:
            os.write(self._wake_write, b".")

    def _watch(self) -> None:
        pause_s = SHORTEST_PAUSE_S
        while not self._stopping.is_set():
            with self._lock:
                connection = self._connection
                socket = None if connection is None or connection.closed else connection.pgconn.socket
                limit_s = _RETAKE_S if self._locks - self._held else None
            if socket is not None:
                self._wait_for(socket, limit_s)
            if self._stopping.is_set():
                return
            try:
                self._look(connection)
                pause_s = SHORTEST_PAUSE_S
            except DatabaseUnavailable as error:
                logger.debug("the line is down: %s", error.problem)
                self._stopping.wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _wait_for(self, socket: int, limit_s: float | None) -> None:
        try:
            with selectors.DefaultSelector() as selector:  # select() refuses descriptors from 1024 on
                selector.register(socket, selectors.EVENT_READ)
                selector.register(self._wake_read, selectors.EVENT_READ)
                ready = {key.fd for key, _ in selector.select(limit_s)}
        except (OSError, ValueError):
            return  # it was closed meanwhile
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)

    def _look(self, seen: psycopg.Connection[Any] | None) -> None:
        """Take what has come; open the connection anew if it broke."""
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._open()
                self._heard()  # what was sent meanwhile is lost
                return
            if self._connection is not seen:
                return
            if self._locks - self._held:
                with self.connection() as connection:
                    for key in self._locks:
                        self._take(connection, key)
            try:
                # libpq's own, which never waits: psycopg's way takes longer than the rest of a wake-up.
                with translated(self._target):
                    seen.pgconn.consume_input()
            except DatabaseUnavailable:
                self._drop()
                raise
            if seen.pgconn.notifies():
                self._heard()
                while seen.pgconn.notifies():
                    pass

    def close(self) -> None:
        """Let go of the connection."""
        self._stopping.set()
        self._poke()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._drop()
            for descriptor in (self._wake_read, self._wake_write):
                if descriptor >= 0:
                    os.close(descriptor)
            self._wake_read = self._wake_write = -1
