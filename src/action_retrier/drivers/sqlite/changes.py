"""Notice commits: our own at once, those of other connections and processes by looking at the WAL."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ...errors import DatabaseUnavailable
from .users import Users

_SHORTEST_S = 0.001  # each look costs some 40 microseconds of CPU, for the most part to wake up
_LONGEST_S = 0.1
_OURS_S = 0.01  # what shows so soon after a commit of our own is that one
_LIVELY_S = 5.0  # for how long after a commit it is looked for the next one without a pause
_PATIENCE = 250  # then wait as small a part of the time for which nothing has happened
_AGAIN = 10  # ask again when as small a part of the time has passed since the WAL was written to, for _LIVELY_S


class SqliteSubscription:
    """A wish to hear of commits."""

    asks_after_vain_s = 1.0
    """A claim takes the one write lock: whoever claims in vain on hearing of a commit asks first for a while."""

    def __init__(self, changes: "SqliteChanges", call: Callable[[], None]) -> None:
        self.call = call
        self.was_told = False
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

    async def tune(self, worker: str, *, busy: bool) -> float | None:  # noqa: ARG002 - it costs others nothing
        """Do nothing: others' commits show by themselves."""
        return None

    def close(self) -> None:
        """Hear no more."""
        self._changes.remove(self)


class SqliteChanges:
    """Watches the database on behalf of the active subscriptions, in a thread of its own."""

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection], users: Users) -> None:
        self._wal = f"{path}-wal"
        self._connect = connect
        self._users = users
        users.on_fork(self.drop_connection)
        self._connection: sqlite3.Connection | None = None
        self._connections = 0
        self._committed_s = float("-inf")
        """When this process has committed last."""
        self._subscriptions: list[SqliteSubscription] = []
        self._lock = threading.RLock()  # taken as it is: a signal's handler might leave a Condition locked
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._stopping = False

    def subscribe(self, call: Callable[[], None]) -> SqliteSubscription:
        """Make *call*, from any thread, after commits of this process and of others."""
        subscription = SqliteSubscription(self, call)
        with self._lock:
            self._subscriptions = [*self._subscriptions, subscription]
        return subscription

    def remove(self, subscription: SqliteSubscription) -> None:
        """End a subscription."""
        with self._lock:
            self._subscriptions = [one for one in self._subscriptions if one is not subscription]

    def notify(self) -> None:
        """Tell the active subscriptions that something has been committed."""
        self._committed_s = time.monotonic()
        for subscription in self._subscriptions:
            if subscription.active:
                subscription.call()

    def look(self) -> None:
        """Start looking, or go on."""
        with self._lock:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._watch, name="action-retrier-watch", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        seen, stamp = None, None
        stamped_s = asked_s = quiet_since = time.monotonic()
        while True:
            with self._lock:
                while not self._stopping and not any(one.active for one in self._subscriptions):
                    self._changed.wait()
                    quiet_since = time.monotonic()
                if self._stopping:
                    break
            now_s = time.monotonic()
            found = self._stamp()
            if found != stamp:
                stamp, stamped_s, quiet_since = found, now_s, now_s
            if stamp is None or _may_show_more(now_s, asked_s, stamped_s):
                asked_s = now_s
                with self._users.using():
                    version = self._version()
                if version != seen:
                    seen, quiet_since = version, now_s
                    self._tell()
            quiet_s = now_s - quiet_since
            time.sleep(_SHORTEST_S if quiet_s < _LIVELY_S else min(quiet_s / _PATIENCE, _LONGEST_S))
        self.drop_connection()

    def _tell(self) -> None:
        """Tell the active subscriptions that something has been committed, and if that was somebody else."""
        is_theirs = time.monotonic() - self._committed_s > _OURS_S
        for subscription in self._subscriptions:
            if subscription.active:
                subscription.was_told = subscription.was_told or is_theirs
                subscription.call()

    def _stamp(self) -> tuple[int, int, int] | None:
        """Return what changes with a commit, but for those that come at the same time: ten times as fast as to ask."""
        try:
            found = os.stat(self._wal)  # noqa: PTH116 - in half the time
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _version(self) -> tuple[int, int] | None:
        """Return what changes with every commit of others: each connection counts anew."""
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connections += 1
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except (sqlite3.Error, OSError, DatabaseUnavailable):
            # Only a hint is lost: the worker polls. A new connection may do better.
            self.drop_connection()
            return None
        return self._connections, int(version)

    def drop_connection(self) -> None:
        """Close the connection, which nobody uses now; the next look opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _may_show_more(now_s: float, asked_s: float, stamped_s: float) -> bool:
    """
    Tell whether to ask once more for what bears one stamp.

    A commit is stamped when it is written, and shows when that is on the disk, which may take a second; and the clock
    of stamps is coarse, so that several commits may bear one.
    """
    return asked_s - stamped_s < _LIVELY_S and now_s - asked_s >= (asked_s - stamped_s) / _AGAIN
