"""
The database that all simulated processes share: SQLite's real SQL in one real file, reached through what may fail.

Each operation is the library's own, driven in one real transaction. Before and after it time passes, in which whoever
asked may die, or lose patience; a call may fail before it has been done, or its answer may be lost.

There are two worlds. On the *host* all processes share a machine, as with SQLite: a call dies with its process, and
whoever holds the write lock keeps others waiting for as long as he is stopped. With a *server*, as with PostgreSQL,
each process is on a machine of its own, with clocks of its own; what has been sent is done although the sender is
dead, and a transaction that is left idle is ended.

What cannot be shown on SQLite is several transactions at work at the same time: rows that a user's transaction has
locked, which reports skip (SKIP LOCKED), serialization failures, deadlocks. Here a transaction has the whole database.
"""

import contextlib
import json
import sqlite3
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from action_retrier._statements import Op, Rows, Statement, drive
from action_retrier.drivers.sqlite.connection import execute
from action_retrier.drivers.sqlite.transaction import SqliteTransaction
from action_retrier.errors import DatabaseUnavailable

from .leases import Files, Sessions
from .loop import SimulatedLoop
from .process import EPOCH_US, Process
from .store import Store

_LEASE_US = 10_000_000  # as claim_runs.sql has it on PostgreSQL
_HEARD = 0.9
_CLAIMS = frozenset({"claim_runs", "claim_suspects", "claim_callbacks"})


Travel = Callable[[], Awaitable[None]]
"""Lets a message take its time."""


class Witness(Protocol):
    """Who looks at all that is committed."""

    def committed(self, process: Process, what: str) -> None:
        """Look at what *process* has just committed."""


class Unavailable(DatabaseUnavailable):
    """What the simulation makes up."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem=problem, remedy="it will pass")


class Server:
    """What stands behind every process's `SimulatedDatabase`."""

    def __init__(self, store: Store, loop: SimulatedLoop, *, is_host: bool, direct: bool) -> None:
        self.store = store
        self.loop = loop
        self.is_host = is_host
        self.files = Files()
        self.sessions = Sessions(direct=direct)
        self.lines: dict[object, Any] = {}
        self.line_of: dict[Process, Any] = {}
        self.witness: Witness | None = None
        self.is_down = False
        self.is_silent = False
        """Whether nobody hears of commits."""
        self._up_since_s = -1000.0
        self._waiting: deque[Callable[[], None]] = deque()
        self._loan: Loan | None = None
        self.changes: list[Subscription] = []
        self.lies = 0.0
        self.longest_way_s = 0.005
        self.injected: Counter[str] = Counter()

    def now_us(self) -> int:
        return EPOCH_US + round(self.loop.now_s * 1e6)

    # What may happen to it.

    def reachable(self, process: Process) -> bool:
        return not self.is_down and not process.is_cut_off

    def go_down(self, seconds: float, *, restarts: bool) -> None:
        """Fail everything for a while; on a server every session ends, also where it is only the network's doing."""
        if self.is_down:
            return
        self.is_down = True
        if not self.is_host:
            for session in list(self.lines):
                self.end_session(session)
            if self._loan is not None:
                self._lose(self._loan)
        self.loop.call_on(self.loop.world, seconds, self._come_up, restarts)

    def _come_up(self, restarted: bool) -> None:  # noqa: FBT001 - a callback
        self.is_down = False
        if restarted:
            self._up_since_s = self.loop.now_s

    def lost_lock_for(self, worker: str) -> float:
        """Return for how long nobody has held the lock that proves that *worker* lives."""
        if self.is_host:
            return _LEASE_US if f"{worker}.lock" not in self.files.holder else 0.0
        key = int.from_bytes(bytes.fromhex(worker.replace("-", ""))[8:], "big", signed=True)
        since_s = self.sessions.free_since_s.get(key)
        return 0.0 if since_s is None else self.loop.now_s - since_s

    def end_session(self, session: object) -> None:
        line = self.lines.pop(session)
        self.sessions.end(session, self.loop.now_s)
        line.lost(session)

    def end_sessions_of(self, process: Process) -> None:
        for session in [session for session, line in self.lines.items() if line._process is process]:
            self.end_session(session)

    def bury(self, process: Process) -> None:
        """End what a dead process has left open."""
        if self._loan is not None and self._loan.process is process:
            self._lose(self._loan)

    # Transactions, one at a time.

    def when_free(self, call: Callable[[], None]) -> None:
        """Make *call* when nobody has a transaction open."""
        if self._loan is None:
            call()
        else:
            self._waiting.append(call)

    def lend(self, process: Process, travel: Travel, idle_s: float) -> "Loan":
        """Open a transaction for user code."""
        self.store.writer.execute("BEGIN IMMEDIATE")
        self._loan = loan = Loan(self, process, travel)
        if not self.is_host:
            self._watch(loan, idle_s)
        return loan

    def _watch(self, loan: "Loan", idle_s: float) -> None:
        """End a transaction whose client cannot be heard of."""

        def look() -> None:
            if self._loan is loan and (loan.process.freezes or loan.process.is_cut_off):
                self._lose(loan)
            elif self._loan is loan:
                self._watch(loan, idle_s)

        self.loop.call_on(self.loop.world, idle_s, look)

    def end(self, loan: "Loan", decision: str) -> None:
        """End the transaction that is open, and let the next one have its turn."""
        if self._loan is not loan:
            return
        try:
            if decision == "commit":
                self.store.writer.commit()
                self._tell(loan.process, "transaction")
            else:
                self.store.writer.rollback()
                self.store.forget_touched()
        finally:
            self._next()

    def _lose(self, loan: "Loan") -> None:
        """End a transaction whose client is gone, or has lost it and does not know yet."""
        loan.is_lost = True
        self.expel(loan)

    def expel(self, loan: "Loan") -> None:
        """End a transaction, and allow nothing more to whoever still has its connection."""
        if self._loan is loan:
            self.store.guard.expel()
            self.store.open_writer()
            self.store.forget_touched()
            self._next()

    def _next(self) -> None:
        self._loan = None
        while self._waiting and self._loan is None:
            self._waiting.popleft()()

    def write(self, process: Process, make: Callable[[], Op[Any]]) -> Any:
        """Run an operation in a transaction of its own, now."""
        connection, said = self.store.writer, []

        def run(statement: Statement) -> Rows:
            said.append(statement.name)
            return self._execute(connection, statement)

        connection.execute("BEGIN IMMEDIATE")
        try:
            result = drive(make(), run)
        except BaseException:
            connection.rollback()
            self.store.forget_touched()
            raise
        connection.commit()
        self._tell(process, " ".join(said))
        return result

    def read(self, make: Callable[[], Op[Any]]) -> Any:
        """Run an operation that writes nothing, now."""
        return drive(make(), lambda statement: self._execute(self.store.reader, statement))

    def _execute(self, connection: sqlite3.Connection, statement: Statement) -> Rows:
        name = statement.name
        if not self.is_host:
            if name == "select_leases":
                return self.lease_rows(statement, connection)
            if name == "insert_worker":
                self.sessions.renewed_us[str(statement.parameters["id"])] = self.now_us()
            if name in _CLAIMS and not self._has_lease(str(statement.parameters["worker"])):
                return []  # what PostgreSQL's statements ask for in their last condition
        return execute(connection, statement, self.now_us())

    def _tell(self, process: Process, what: str) -> None:
        assert self.witness is not None
        has_changed = any(self.store.touched.values())
        self.witness.committed(process, what)
        if not has_changed or self.is_silent:
            return
        is_told = not self.is_host and ("insert_runs" in what or "retry_runs" in what)
        for one in self.changes:
            if one.active and one.process.rng.random() < _HEARD:
                self.loop.call_on(one.process.lane, self.way_s(one.process), one.ring, is_told)

    def way_s(self, process: Process) -> float:
        """Return how long a message takes."""
        return process.rng.random() * self.longest_way_s

    # Leases.

    def _has_lease(self, worker: str) -> bool:
        return self.sessions.renewed_us.get(worker, 0) > self.now_us() - _LEASE_US

    def lease_rows(self, statement: Statement, connection: sqlite3.Connection | None = None) -> Rows:
        """Do what PostgreSQL's renew_worker.sql and select_leases.sql do."""
        connection = connection or self.store.reader
        known = {row[0] for row in connection.execute("SELECT id FROM action_retrier_workers")}
        sessions = self.sessions
        if statement.name == "renew_worker":
            worker = str(statement.parameters["id"])
            if worker not in known:
                return []
            sessions.renewed_us[worker] = self.now_us()
            sessions.is_direct[worker] = bool(statement.parameters["is_direct"])
            return [{"id": worker}]
        rows: Rows = []
        for given in json.loads(str(statement.parameters["workers"])):
            worker = given["id"]
            key = given["high"] << 32 | given["low"]
            signed = key - (1 << 64) if key >> 63 else key
            renewed = sessions.renewed_us.get(worker, 0) if worker in known else None
            rows.append(
                {
                    "id": worker,
                    "renewed_at": renewed,
                    "silent_for": None if renewed is None else self.now_us() - renewed,
                    "is_direct": sessions.is_direct.get(worker, False),
                    "is_held": signed in sessions.holder,
                    "server_up_for": round((self.loop.now_s - self._up_since_s) * 1e6),
                }
            )
        return rows


class Loan(SqliteTransaction):
    """A transaction that user code has open, a network away from it."""

    def __init__(self, server: Server, process: Process, travel: Travel) -> None:
        super().__init__(server.store.writer, server.store.guard, server.store.path, server)  # type: ignore[arg-type]
        self._server = server
        self.process = process
        self._travel = travel
        self.is_lost = False

    async def run(self, op: Op[Any]) -> Any:
        if not self._server.is_host:
            await self._travel()
        self._check()
        result = await super().run(op)
        if not self._server.is_host:
            await self._travel()
        self._check()
        return result

    def _check(self) -> None:
        if self.is_lost:
            raise Unavailable("the transaction was lost")

    def savepoint_sync(self) -> Any:
        self._check()
        return super().savepoint_sync()

    def _control(self, text: str) -> None:
        if not self.is_lost:
            super()._control(text)

    def abandon(self) -> None:
        self.give_back("abandon")
        self._server.expel(self)


class Subscription:
    """A wish to hear of commits, of which one in ten is not heard."""

    def __init__(self, server: Server, process: Process, call: Callable[[], None]) -> None:
        self.process = process
        self.active = False
        self.was_told = False
        self.asks_after_vain_s = 0.0
        self._server = server
        self._call = call
        server.changes.append(self)

    async def tune(self, worker: str, *, busy: bool) -> float | None:
        return None

    def ring(self, is_told: bool) -> None:  # noqa: FBT001 - a callback
        self.was_told = self.was_told or is_told
        self._call()

    def close(self) -> None:
        with contextlib.suppress(ValueError):
            self._server.changes.remove(self)


class Changes:
    """How one process hears of commits."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server = server
        self._process = process

    def subscribe(self, call: Callable[[], None]) -> Subscription:
        return Subscription(self._server, self._process, call)
