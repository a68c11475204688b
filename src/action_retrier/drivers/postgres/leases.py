"""
Leases on PostgreSQL: a time in the worker's row, by the server's clock, and an advisory lock of its session.

The lock tells a death as soon as the server notices that the session has ended; the time tells
all else, and is all there is behind a pooler.
"""

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import psycopg

from ..._clock import boot_time_us
from ..._statements import Op, Rows, Statement
from .connection import execute
from .line import Line
from .urls import Target

LEASE_US = 10_000_000
"""How long a worker may be silent before others take over its runs."""
MARGIN_US = 2_000_000
"""How long before that it considers the lease lost itself."""
_LOOKS_APART_US = 1_000_000
_CLOCKS_APART_US = 2_000_000  # an answer may have been on its way for a while
_SUSPICIOUS_S, _CALM_S, _ALONE_S = 0.25, 0.5, 1.0
_STEADY_US = 5_000_000  # within that, whoever lives has come back after an outage

Read = Callable[[Callable[[], Op[Rows]]], Awaitable[Rows]]


def lock_key(worker: str) -> int:
    """Return the key of a worker's advisory lock: the random half of its UUID."""
    return int.from_bytes(bytes.fromhex(worker.replace("-", ""))[8:], "big", signed=True)


class ServerClock:
    """Notices when the server's clock is set, by our own."""

    def __init__(self) -> None:
        self._seen: tuple[int, int] | None = None
        self._set_at: int | None = None

    def compare(self, servers: int, ours: int) -> None:
        """Take note of what both show."""
        if self._seen is not None:
            servers_then, ours_then = self._seen
            if abs((servers - servers_then) - (ours - ours_then)) > _CLOCKS_APART_US:
                self._set_at = ours
        self._seen = servers, ours

    def was_set(self, now: int) -> bool:
        """Tell whether it was, so recently that the living may not have renewed since."""
        return self._set_at is not None and now - self._set_at < LEASE_US


class PostgresLeases:
    """Leases of the workers in one schema."""

    def __init__(self, target: Target, line: Line, read: Read) -> None:
        self._target = target
        self._line = line
        self._read = read
        self._renewed: dict[str, int] = {}
        self._unbroken_since: dict[str, int] = {}
        self._free_since: dict[str, tuple[int, int]] = {}
        self._unchanged_since: dict[str, tuple[int, int]] = {}
        self._server_clock = ServerClock()

    def acquire(self, worker: str) -> None:
        """Take the lock of a fresh worker id; its lease begins with its row."""
        self._line.lock(lock_key(worker))
        self._renewed[worker] = self._unbroken_since[worker] = boot_time_us()

    def announce(self, worker: str) -> None:
        """Have the row say that there is a lock to look at: else a death in the first seconds costs a whole lease."""
        self.renew(worker)

    def renew(self, worker: str) -> bool:
        """Prolong it. False: it had ended before, and others may have recovered the runs."""
        asked = boot_time_us()  # the lease counts from before the server heard of it
        with self._line.connection() as connection, self._block(connection):
            # Only now: the connection may have been opened anew, and another session may still have the lock.
            statement = Statement("renew_worker", {"id": worker, "is_direct": int(self._line.holds(lock_key(worker)))})
            rows = execute(connection, statement, self._target.schema, None)
        if not rows:
            return False
        gap = asked - self._renewed.get(worker, 0)
        self._renewed[worker] = asked
        if gap < LEASE_US - MARGIN_US:
            return True
        self._unbroken_since[worker] = asked
        return True  # the row is still there: nobody has recovered anything

    def _block(self, connection: psycopg.Connection[Any]) -> contextlib.AbstractContextManager[object]:
        """Return nothing where a statement may commit itself: behind a pooler the role's isolation counts."""
        return contextlib.nullcontext() if self._target.direct else connection.transaction()

    def is_fresh(self, worker: str) -> bool:
        """Tell whether it was prolonged so lately that nobody can have taken over its runs."""
        return boot_time_us() - self._renewed.get(worker, 0) < LEASE_US - MARGIN_US

    def release(self, worker: str, *, signed_off: bool = True) -> None:  # noqa: ARG002 - its row tells
        """End it."""
        self._line.unlock(lock_key(worker))
        self._renewed.pop(worker, None)
        self._unbroken_since.pop(worker, None)

    async def dead(self, workers: Iterable[str]) -> list[str]:
        """
        Return those of *workers* whose lease has ended.

        Silence counts only for one who has renewed a lease of its own without a gap for one
        lease: after an outage of the server everybody is silent.
        """
        asked = list(workers)
        for worker in (self._free_since.keys() | self._unchanged_since.keys()).difference(asked):
            self.forget(worker)  # it has signed off, or somebody else has recovered it
        return [row["id"] for row in self._dead_ones(await self._look(asked))]

    def _dead_ones(self, rows: Rows) -> Rows:
        now = boot_time_us()
        for row in rows:
            if row["renewed_at"] is not None:
                self._server_clock.compare(row["renewed_at"] + row["silent_for"], now)
                break
        may_judge = any(self._may_judge(own, now) for own in self._unbroken_since)
        return [row for row in rows if self._is_dead(row, now, may_judge=may_judge)]

    def _may_judge(self, own: str, now: int) -> bool:
        """Whether our own lease is fresh, and has been without a gap for one lease."""
        return self.is_fresh(own) and now - self._unbroken_since[own] >= LEASE_US

    @property
    def _locks_tell(self) -> bool:
        """Whether a free lock means anything: not soon after we lost our own session, as everybody may have then."""
        return self._line.is_steady(_STEADY_US)

    def _is_dead(self, row: dict[str, Any], now: int, *, may_judge: bool) -> bool:
        worker, renewed_at = row["id"], row["renewed_at"]
        if renewed_at is None:
            return True  # it has no row any more, so it knows that its runs are not its own
        if self._is_silent(row, now, unchanged_for=self._unchanged_for(row, now)) and may_judge:
            return True
        if not row["is_direct"] or row["is_held"] or row["server_up_for"] < LEASE_US or not self._locks_tell:
            self._free_since.pop(worker, None)
            return False
        since, renewed_then = self._free_since.setdefault(worker, (now, renewed_at))
        if renewed_then != renewed_at:
            self._free_since[worker] = (now, renewed_at)
            return False
        return now - since >= _LOOKS_APART_US

    def _unchanged_for(self, row: dict[str, Any], now: int) -> int:
        """Take note of its last renewal; return for how long we have seen no other, by our own clock."""
        seen = self._unchanged_since.get(row["id"])
        if seen is None or seen[1] != row["renewed_at"]:
            seen = self._unchanged_since[row["id"]] = (now, row["renewed_at"])
        return now - seen[0]

    def _is_silent(self, row: dict[str, Any], now: int, *, unchanged_for: int) -> bool:
        """
        Whether it has given no sign of life for one lease.

        The server's clock tells, unless it has been set: forward, and everybody seems to have been
        silent; back, and what was written before is in the future. Then our own has to tell as well.
        """
        if row["silent_for"] >= 0 and not self._server_clock.was_set(now):
            return bool(row["silent_for"] > LEASE_US)
        return unchanged_for >= LEASE_US and not 0 <= row["silent_for"] <= LEASE_US

    def look_again_s(self, *, alone: bool) -> float:
        """
        Return after how long to look again.

        It takes two looks to tell a death, at least a second apart. So the first may come late, and the next follow
        closely; where there is nobody else, whoever comes has to be seen once before he can die.
        """
        if self._free_since:
            return _SUSPICIOUS_S
        return _ALONE_S if alone else _CALM_S

    def alive(self, workers: Rows) -> Rows:
        """Of the workers' rows, return those of the living: whose lease has not ended."""
        return [row for row in workers if row["silent_for"] <= LEASE_US]

    def is_still_dead(self, worker: str) -> Op[bool]:
        """Tell whether a worker that was found dead still is; one that wakes up after that finds its row gone."""
        rows = yield self._looking([worker])
        return [row["id"] for row in self._dead_ones(rows)] == [worker]

    async def silent(self, workers: Iterable[str]) -> list[str]:
        """Return those of *workers* that have given no sign for one lease, whether or not we may judge them dead."""
        return [row["id"] for row in await self._look(workers) if (row["silent_for"] or LEASE_US + 1) > LEASE_US]

    @staticmethod
    def _looking(workers: Iterable[str], *, stands_alone: bool = False) -> Statement:
        given = []
        for worker in workers:
            key = lock_key(worker) & 0xFFFF_FFFF_FFFF_FFFF
            given.append({"id": worker, "high": key >> 32, "low": key & 0xFFFF_FFFF})
        return Statement("select_leases", {"workers": json.dumps(given)}, stands_alone=stands_alone)

    async def _look(self, workers: Iterable[str]) -> Rows:
        statement = self._looking(workers, stands_alone=True)

        def look() -> Op[Rows]:
            return (yield statement)

        return await self._read(look)

    def left_behind(self) -> list[str]:
        """Nobody leaves anything beside the database."""
        return []

    def forget(self, worker: str) -> None:
        """Forget what was noted of a worker that is no more."""
        self._free_since.pop(worker, None)
        self._unchanged_since.pop(worker, None)
