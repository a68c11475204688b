"""One session of the server's that stays open: its advisory locks prove that we live, and it hears notifications."""

import asyncio
import contextlib
import os
import select
import selectors
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from ..._clock import boot_time_us
from ...config import logger
from ...errors import DatabaseUnavailable
from .connection import CALL_S, ISOLATED, LONGEST_PAUSE_S, SHORTEST_PAUSE_S, channel, connect, tell, translated
from .deadlines import deadlines
from .reading import Reading
from .urls import Target

_HANG_UP: int | None = getattr(select, "POLLRDHUP", None)
"""Linux's word for a connection that the other end has closed, whether or not there is something to read."""
_LOOP_S = 1.0
"""How long it takes to notice that an event loop was closed while it waited for notifications."""
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
        self._reading: Reading | None = None
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

    def listen_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """
        Have this loop, on which it is called, wait for notifications, if no other does.

        To be woken by the thread that watches would take longer than all that a notification has to do. That one
        goes on watching for the end of the connection, which must be noticed while user code blocks the loop.
        """
        connection = self._connection
        if _HANG_UP is None or connection is None or connection.closed or self._has_reader(connection):
            return
        with contextlib.suppress(NotImplementedError, OSError):
            reading = Reading(loop, connection, self._look_on_loop)
            with self._lock_at_once() as is_ours:
                if is_ours and self._connection is connection and not self._stopping.is_set():
                    self._reading = reading
                    self._poke()
                    return
            reading.end()  # somebody uses it, for long perhaps: next time

    def _has_reader(self, connection: psycopg.Connection[Any]) -> bool:
        reading = self._reading
        return reading is not None and reading.connection is connection and not reading.is_over

    @contextlib.contextmanager
    def _lock_at_once(self) -> Iterator[bool]:
        """Take the lock if nobody has it: an event loop must not wait for it."""
        is_ours = self._lock.acquire(blocking=False)
        try:
            yield is_ours
        finally:
            if is_ours:
                self._lock.release()

    def _look_on_loop(self) -> None:
        """Take what has come; leave the end of the connection to the thread, and answers to whoever has asked."""
        with self._lock_at_once() as is_ours:
            if not is_ours:
                return
            reading, connection = self._reading, self._connection
            if reading is None or connection is not reading.connection or not self._consume(connection):
                self._stop_reading()
                return
            has_heard = _has_heard(connection)
        if has_heard:
            self._heard()

    @staticmethod
    def _consume(connection: psycopg.Connection[Any]) -> bool:
        """Take in what has come; False: the connection is gone."""
        try:
            connection.pgconn.consume_input()
        except psycopg.Error:
            return False
        return True

    def _stop_reading(self) -> None:
        """Leave all that comes to the thread again."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.end_from_elsewhere()
        self._poke()

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
                if self.is_direct:
                    tell(connection, ISOLATED)
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
        if self._reading is not None:
            self._stop_reading()
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
                has_reader = connection is not None and self._has_reader(connection)
                limit_s = _RETAKE_S if self._locks - self._held else _LOOP_S if has_reader else None
            if socket is not None:
                self._wait_for(socket, limit_s, only_its_end=has_reader)
            if self._stopping.is_set():
                return
            try:
                self._look(connection)
                pause_s = SHORTEST_PAUSE_S
            except DatabaseUnavailable as error:
                logger.debug("the line is down: %s", error.problem)
                self._stopping.wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def _wait_for(self, socket: int, limit_s: float | None, *, only_its_end: bool = False) -> None:
        if only_its_end and _HANG_UP is not None:
            ready = _poll(socket, self._wake_read, _HANG_UP, limit_s)
        else:
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
            if _has_heard(seen):
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


def _poll(socket: int, wake: int, events: int, limit_s: float | None) -> set[int]:
    """Wait until something of *events* happens to *socket*, or can be read from *wake*."""
    polled = select.poll()
    polled.register(socket, events)  # an error, and the end of both directions, are told whatever is asked for
    polled.register(wake, select.POLLIN)
    return {descriptor for descriptor, _ in polled.poll(None if limit_s is None else limit_s * 1000)}


def _has_heard(connection: psycopg.Connection[Any]) -> bool:
    """Forget what has been notified, and tell whether there was something."""
    has_heard = False
    while connection.pgconn.notifies():
        has_heard = True
    return has_heard
