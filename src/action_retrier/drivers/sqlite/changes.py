"""Notice commits: our own at once, those of other connections and processes by ``PRAGMA data_version``."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable

_SHORTEST_S = 0.002  # each look costs some 50 microseconds of CPU
_LONGEST_S = 0.02
_PATIENCE = 50  # wait a fiftieth of the time for which nothing has happened


class SqliteSubscription:
    """A wish to hear of commits."""

    def __init__(self, changes: "SqliteChanges", call: Callable[[], None]) -> None:
        self.call = call
        self._changes = changes
        self._active = False

    @property
    def active(self) -> bool:
        """While False nothing is looked for on its behalf."""
        return self._active

    @active.setter
    def active(self, value: bool) -> None:
        if value != self._active:
            self._active = value
            if value:
                self._changes.look()

    def close(self) -> None:
        """Hear no more."""
        self._changes.remove(self)


class SqliteChanges:
    """Watches the database on behalf of the active subscriptions, in a thread of its own."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._subscriptions: list[SqliteSubscription] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def subscribe(self, call: Callable[[], None]) -> SqliteSubscription:
        """Make *call*, from any thread, after commits of this process and of others."""
        subscription = SqliteSubscription(self, call)
        with self._changed:
            self._subscriptions = [*self._subscriptions, subscription]
        return subscription

    def remove(self, subscription: SqliteSubscription) -> None:
        """End a subscription."""
        with self._changed:
            self._subscriptions = [one for one in self._subscriptions if one is not subscription]

    def notify(self) -> None:
        """Tell the active subscriptions that something has been committed."""
        for subscription in self._subscriptions:
            if subscription.active:
                subscription.call()

    def look(self) -> None:
        """Start looking, or go on."""
        with self._changed:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._watch, name="action-retrier-watch", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        connection: sqlite3.Connection | None = None
        seen = None
        quiet_since = time.monotonic()
        while True:
            with self._changed:
                while not self._stopping and not any(one.active for one in self._subscriptions):
                    self._changed.wait()
                    quiet_since = time.monotonic()
                if self._stopping:
                    break
            try:
                if connection is None:
                    connection = self._connect()
                (version,) = connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error:
                # Only a hint is lost: the worker polls. A new connection may do better.
                if connection is not None:
                    with contextlib.suppress(sqlite3.Error):
                        connection.close()
                connection = None
                version = None
            if version != seen:
                seen = version
                quiet_since = time.monotonic()
                self.notify()
            quiet = time.monotonic() - quiet_since
            time.sleep(min(max(quiet / _PATIENCE, _SHORTEST_S), _LONGEST_S))
        if connection is not None:
            connection.close()
