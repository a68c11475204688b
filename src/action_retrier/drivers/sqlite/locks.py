"""
Lock files beside the database: a fair queue for writers, and proof that a worker lives.

They use ``lockf`` (POSIX record locks): such a lock ends with its process, however that dies, and
a forked child does not keep it. Its trap is that *any* close of the file by the process drops the
lock, so a file that this process locks is opened once, and the table below knows it.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import DatabaseUnavailable

_DEADLOCK_PAUSE_S = 0.001
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


class LockFile:
    """A file that this process has opened for locking; made by `lock_file` only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, _FLAGS, 0o600)
        except OSError as error:
            raise self._unavailable("opened", error) from error
        opened = os.fstat(self.descriptor)
        self._identity = opened.st_dev, opened.st_ino
        self._owner: object | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def _unavailable(self, what: str, error: OSError) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            problem=f"{self.path} cannot be {what} ({error.strerror})",
            remedy="it stands beside the database, for the processes on it to take turns: "
            "check its owner and mode, and those of the directory",
        )

    def acquire(self, owner: object, *, waits: bool = True) -> bool:
        """
        Wait for the lock: first for our own threads, which share a POSIX lock, then for other processes.

        Args:
            owner: Whoever is to have it, and to `release` it, also if this raises: a signal's handler may do that
                just when it has been won.
            waits: If False it is taken only if it is free.

        Returns:
            Whether it is the owner's.
        """
        with self._lock:
            while self._owner is not None:
                if not waits:
                    return False
                self._changed.wait()
            self._owner = owner
        is_ours = False
        try:
            if waits:
                while not _wait_for_lock(self.descriptor):
                    time.sleep(_DEADLOCK_PAUSE_S)
                is_ours = True
            else:
                is_ours = _try_lock(self.descriptor)
        except OSError as error:
            raise self._unavailable("locked", error) from error
        finally:
            if not is_ours:
                try:
                    self.release(owner)
                finally:
                    self._forget(owner)
        return is_ours

    def release(self, owner: object) -> None:
        """Let the next one have it, unless *owner* does not have it, or not any more."""
        with self._lock:
            if self._owner is owner:
                with contextlib.suppress(OSError):
                    fcntl.lockf(self.descriptor, fcntl.LOCK_UN)
                self._forget(owner)

    def _forget(self, owner: object) -> None:
        with self._lock:
            if self._owner is owner:
                self._owner = None
                self._changed.notify()

    def acquire_now(self) -> bool:
        """Take the lock if it is free, for this process as a whole, until the file is closed."""
        return _try_lock(self.descriptor)

    def is_in_place(self) -> bool:
        """Tell whether the file is still what its path names: somebody may have removed it."""
        try:
            there = os.lstat(self.path)
        except FileNotFoundError:
            return False
        except OSError as error:  # it may be the same, and two of one file would both have its lock
            raise self._unavailable("reached any more", error) from error
        return (there.st_dev, there.st_ino) == self._identity

    def write(self, text: str) -> None:
        """Replace the content, in place."""
        os.pwrite(self.descriptor, text.encode(), 0)


_files: dict[Path, LockFile] = {}
_users: dict[Path, int] = {}
_files_lock = threading.Lock()


def lock_file(path: Path) -> LockFile:
    """Return the one `LockFile` that this process has for *path*, opening it if need be."""
    with _files_lock:
        found = _files.get(path)
        if found is None or not found.is_in_place():
            found = _files[path] = LockFile(path)
        return found


@contextlib.contextmanager
def used_lock_file(path: Path) -> Iterator[None]:
    """Let `lock_file` keep its file open inside; when nobody uses it any more it is closed, and stays in place."""
    with _files_lock:
        _users[path] = _users.get(path, 0) + 1
    try:
        yield
    finally:
        with _files_lock:
            _users[path] -= 1
            if not _users[path]:
                del _users[path]
                found = _files.pop(path, None)
                if found is not None:
                    os.close(found.descriptor)


def held_here(path: Path) -> bool:
    """Tell whether this process has *path* open for locking."""
    with _files_lock:
        return path in _files


def close_lock_file(path: Path, *, remove: bool) -> None:
    """Close a lock file of this process, if it is open; its lock ends."""
    with _files_lock:
        found = _files.pop(path, None)
        if found is not None:
            if remove:
                path.unlink(missing_ok=True)
            os.close(found.descriptor)


def probe(path: Path) -> tuple[bool, str] | None:
    """
    Look at another process's lock file: (whether its lock is free, its content); None if it is gone.

    Must not be used on a file that this process has locked.
    """
    try:
        descriptor = os.open(path, _FLAGS & ~os.O_CREAT)
    except FileNotFoundError:
        return None
    try:
        content = os.pread(descriptor, 64, 0).decode("ascii", "replace")
        return _try_lock(descriptor), content
    finally:
        os.close(descriptor)  # and with it the lock, if we got it


def untouched_for(us: int, paths: Iterable[Path]) -> Iterator[Path]:
    """Give those of *paths* that were written to longer ago, as far as the files' own clock can tell; a hint."""
    for path in paths:
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) * 1e6 > us:
                yield path


def _wait_for_lock(descriptor: int) -> bool:
    """
    Wait for a lock. False: it is to be asked for again.

    The kernel looks for deadlocks between processes, not threads: with two databases, two
    processes that each hold the one and wait for the other, in unrelated threads, look like one.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno == errno.EDEADLK:
            return False
        raise
    return True


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EAGAIN}:
            return False
        raise
    return True


def _forget_after_fork() -> None:
    # The locks stayed with the parent. The descriptors are left open: nothing here depends on them.
    global _files, _users, _files_lock  # noqa: PLW0603 - the child starts with empty tables
    _files, _users = {}, {}
    _files_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
