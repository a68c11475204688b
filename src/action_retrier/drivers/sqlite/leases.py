"""
Leases on SQLite: a lock file a worker, beside the database.

The lock tells death at once; a time stamp in the file tells a process that was stopped. It is no
row, because SQLite's writers queue: with 16 of them a heartbeat through the database has been
seen to wait for half a minute.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from ..._clock import boot_time_us
from ..._statements import Op, Rows
from ...errors import DatabaseUnavailable
from .locks import close_lock_file, held_here, lock_file, probe, untouched_for

LEASE_US = 10_000_000
"""How long a worker may be silent before others take over its runs."""
MARGIN_US = 2_000_000
"""How long before that it considers the lease lost itself."""
_ALONE_S = 1.0


_renewed: dict[str, int] = {}  # the workers of this process, whichever App they belong to


class SqliteLeases:
    """Leases of the workers on one database file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unbroken_since: dict[str, int] = {}
        self._missing_since: dict[str, int] = {}

    def acquire(self, worker: str) -> None:
        """Take the lease of a fresh worker id."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailable(
                problem=f"the directory {self._directory} cannot be made ({error.strerror})",
                remedy="workers keep their leases in it: check what is there, and the mode of the directory around it",
            ) from error
        file = lock_file(self._path(worker))
        if not file.acquire_now():
            raise RuntimeError(f"{file.path} is locked by another process, which cannot be: ids are unique")
        now = boot_time_us()
        try:
            file.write(f"{now:020d}")
        except OSError as error:
            close_lock_file(file.path, remove=True)  # whoever tries again does so under another id
            raise DatabaseUnavailable(
                problem=f"the lease {file.path} cannot be written ({error.strerror})",
                remedy="see whether the disk is full, or fails; it is tried again",
            ) from error
        _renewed[worker] = self._unbroken_since[worker] = now

    def announce(self, worker: str) -> None:
        """The lock file says all."""

    def renew(self, worker: str) -> bool:
        """Prolong it. False: it had ended before, and others may have recovered the runs."""
        file = lock_file(self._path(worker))
        if not file.acquire_now():  # ours already, unless somebody removed the file and this is a new one
            return False
        now = boot_time_us()
        file.write(f"{now:020d}")
        gap = now - _renewed.get(worker, 0)
        _renewed[worker] = now
        if gap < LEASE_US - MARGIN_US:
            return True
        self._unbroken_since[worker] = now
        return False

    def is_fresh(self, worker: str) -> bool:
        """Tell whether it was prolonged so lately that nobody can have taken over its runs."""
        return boot_time_us() - _renewed.get(worker, 0) < LEASE_US - MARGIN_US

    def release(self, worker: str, *, signed_off: bool = True) -> None:
        """End it; a file that stays, with its lock free, tells that there is a row left."""
        close_lock_file(self._path(worker), remove=signed_off)
        _renewed.pop(worker, None)
        self._unbroken_since.pop(worker, None)

    async def dead(self, workers: Iterable[str]) -> list[str]:
        """
        Return those of *workers* whose lease has ended.

        A free lock is proof. Silence counts only for one who has renewed a lease of its own
        without a gap for one lease: after a suspended machine wakes, everybody is silent.
        """
        return [worker for worker in workers if self._is_dead(worker)]

    def look_again_s(self, *, alone: bool) -> float:
        """Return after how long to look again: one look tells a death, so at the next occasion if anybody may die."""
        return _ALONE_S if alone else 0.0

    def alive(self, workers: Rows) -> Rows:
        """Of the workers' rows, return those of the living."""
        return [row for row in workers if not self._is_dead(row["id"])]

    def is_still_dead(self, worker: str) -> Op[bool]:
        """Tell whether the lease of *worker* has ended: nobody can renew it while the write lock is ours."""
        yield from ()
        return self._is_dead(worker)

    def _is_dead(self, worker: str) -> bool:
        now = boot_time_us()
        may_judge = any(self._may_judge(own, now) for own in self._unbroken_since)
        path = self._path(worker)
        if held_here(path):
            # A worker of this very process: the lock says nothing, and a probe would drop it.
            return may_judge and now - _renewed.get(worker, now) > LEASE_US
        seen = probe(path)
        if seen is None:
            # Nobody removes a file before its row, so this one was removed by hand. Give its owner
            # the time to notice.
            return now - self._missing_since.setdefault(worker, now) > LEASE_US
        self._missing_since.pop(worker, None)
        is_free, stamp = seen
        if is_free:
            return True
        return may_judge and stamp.isdigit() and now - int(stamp) > LEASE_US

    def _may_judge(self, own: str, now: int) -> bool:
        """Whether a worker of ours has held its lease for long, up to now: not if we too have just been woken up."""
        return self.is_fresh(own) and now - self._unbroken_since[own] >= LEASE_US

    async def silent(self, workers: Iterable[str]) -> list[str]:
        """Return those of *workers* that have given no sign for one lease, whether or not we may judge them dead."""
        now = boot_time_us()
        return [worker for worker in workers if now - self._last_sign(worker) > LEASE_US]

    def _last_sign(self, worker: str) -> int:
        path = self._path(worker)
        if held_here(path):
            return _renewed.get(worker, 0)
        seen = probe(path)
        return int(seen[1]) if seen is not None and seen[1].isdigit() else 0

    def left_behind(self) -> list[str]:
        """Return whose files nobody has touched for one lease: of workers, too, that died before they had a row."""
        return [path.stem for path in untouched_for(LEASE_US, self._directory.glob("*.lock"))]

    def forget(self, worker: str) -> None:
        """Remove the file of a recovered worker."""
        path = self._path(worker)
        self._missing_since.pop(worker, None)
        if not held_here(path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _path(self, worker: str) -> Path:
        return self._directory / f"{worker}.lock"
