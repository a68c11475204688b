"""One session of the server's that stays open: its advisory locks prove that we live, and it hears notifications."""

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from ...config import logger
from ...errors import DatabaseUnavailable
from .connection import CALL_S, connect, translated
from .deadlines import deadlines
from .urls import Target

_RECONNECT_S = 0.5


class Line:
    """
    A connection that threads share for short calls, and whose notifications a thread waits for.

    Only while somebody needs it: the first one opens it, the last one closes it.
    """

    def __init__(self, target: Target, *, heard: Callable[[], None]) -> None:
        """
        Begin closed.

        Args:
            heard: Called, from the thread that listens, when a notification has come or may have been missed.
        """
        self._target = target
        self._heard = heard
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._locks: set[int] = set()
        self._listening = False
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = -1, -1

    @property
    def is_direct(self) -> bool:
        """Whether the session is ours alone, so that its locks mean something: not behind a pooler."""
        return self._target.direct

    def lock(self, key: int) -> None:
        """Hold an advisory lock from now on, over reconnections."""
        with self._lock:
            self._locks.add(key)
            with self.connection() as connection:
                self._take(connection, key)

    def unlock(self, key: int) -> None:
        """Hold it no longer."""
        with self._lock:
            self._locks.discard(key)
            if self._connection is not None and self.is_direct:
                with contextlib.suppress(DatabaseUnavailable), self.connection() as connection:
                    connection.execute("SELECT pg_advisory_unlock(%s)", (key,))

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Use the connection; it is opened anew if need be, and then holds what it held."""
        with self._lock:
            connection = self._connection
            if connection is None or connection.closed:
                connection = self._reconnect()
            try:
                with translated(self._target), deadlines.within(CALL_S, connection):
                    yield connection
            except DatabaseUnavailable:
                self._drop()
                raise

    def _reconnect(self) -> psycopg.Connection[Any]:
        connection = connect(self._target)
        try:
            with translated(self._target), deadlines.within(CALL_S, connection):
                for key in self._locks:
                    self._take(connection, key)
                if self._listening:
                    connection.execute(f'LISTEN "{channel(self._target)}"')
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._poke()
        return connection

    def _take(self, connection: psycopg.Connection[Any], key: int) -> None:
        if self.is_direct:
            # Nobody else takes it: ids are unique. A session of ours that the server has not given up yet may
            # still hold it, which is as good.
            connection.execute("SELECT pg_try_advisory_lock(%s)", (key,))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()

    # Listening.

    def listen(self) -> None:
        """Hear notifications from now on."""
        if not (self._target.notify and self.is_direct):
            return
        with self._lock:
            if self._listening or self._stopping.is_set():
                return
            self._listening = True
            self._wake_read, self._wake_write = os.pipe()
            with contextlib.suppress(DatabaseUnavailable):
                if self._connection is None or self._connection.closed:
                    self._reconnect()
                else:
                    with self.connection() as connection:
                        connection.execute(f'LISTEN "{channel(self._target)}"')
            self._thread = threading.Thread(target=self._watch, name="action-retrier-listen", daemon=True)
            self._thread.start()

    def _poke(self) -> None:
        if self._wake_write >= 0:
            os.write(self._wake_write, b".")

    def _watch(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                connection = self._connection
                open_socket = None if connection is None or connection.closed else connection.pgconn.socket
            sockets = [self._wake_read] + ([] if open_socket is None else [open_socket])
            try:
                ready, _, _ = select.select(sockets, [], [], None if open_socket is not None else _RECONNECT_S)
            except (OSError, ValueError):
                ready = []
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._stopping.is_set():
                return
            try:
                self._take_notifications(connection)
            except DatabaseUnavailable as error:
                logger.debug("notifications: %s", error.problem)

    def _take_notifications(self, seen: psycopg.Connection[Any] | None) -> None:
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._reconnect()
                self._heard()  # what was sent meanwhile is lost
                return
            if self._connection is not seen:
                return
            with self.connection() as connection:
                found = list(connection.notifies(timeout=0))
        if found:
            self._heard()

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


def channel(target: Target) -> str:
    """Return the name of the channel on which starts are told."""
    return f"action_retrier:{target.schema}"[:63]
