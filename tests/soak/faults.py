"""What a soak does to its workers and clients, on every database."""

import contextlib
import heapq
import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crash_database import CrashDatabase

from .fleet import GIVE_UP_S, Fleet, Slot
from .plan import Fault

AGED = 50
"""How many completed runs are made older than what retention keeps."""
_AGE_US = 8 * 86_400_000_000
_AGED_TABLE = "CREATE TABLE IF NOT EXISTS crash_aged (run_id TEXT NOT NULL)"


@dataclass(frozen=True, slots=True)
class Outage:
    """The server was away: for how long, in what way, and when it accepted connections again, as the log of executions has it."""

    kind: str
    took_s: float
    back_at_us: int


class Injector:
    """Injects faults; what does not end by itself ends when its time has come."""

    def __init__(self, fleet: Fleet, database: CrashDatabase, lease_s: float) -> None:
        self.fleet = fleet
        self.database = database
        self.lease_s = lease_s
        self.count: Counter[str] = Counter()
        """How many faults of a kind have been injected; *came_of_it* counts as `names.CAME_OF_IT` says."""
        self.came_of_it: Counter[str] = Counter()
        self.cannot: dict[str, str] = {}
        """Kinds that cannot be injected here, and why not."""
        self.outages: list[Outage] = []
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._users: list[threading.Thread] = []

    def prepare(self) -> None:
        """Create what it needs."""
        with self.database.looking() as look:
            look.write(_AGED_TABLE)

    def inject(self, fault: Fault) -> None:
        """Do it."""
        method = getattr(self, "do_" + fault.kind.replace(" ", "_").replace("/", ""))
        method(fault)

    def later(self, after_s: float, end: Callable[[], None]) -> None:
        """Have something end."""
        heapq.heappush(self._ends, (time.monotonic() + after_s, next(self._numbers), end))

    def tick(self) -> None:
        """End what is over."""
        while self._ends and self._ends[0][0] <= time.monotonic():
            heapq.heappop(self._ends)[2]()

    def let_end(self) -> None:
        """Wait until everything has ended."""
        while self._ends:
            self.tick()
            self.fleet.pause()

    def close(self) -> None:
        """Wait for those who are at it, and let go of everything."""
        for user in self._users:
            user.join()

    def _as_a_user(self, kind: str, do: Callable[[Any], None]) -> None:
        """Have somebody do something on a connection of his own, again if the database fails him, and count it."""

        def insist() -> None:
            give_up_at = time.monotonic() + GIVE_UP_S
            while time.monotonic() < give_up_at:
                with (
                    contextlib.suppress(*self.database.errors),
                    contextlib.closing(self.database.connect(begins_itself=False)) as connection,
                ):
                    do(connection)
                    self.count[kind] += 1
                    return
                self.fleet.pause()

        self._users.append(threading.Thread(target=insist, daemon=True))
        self._users[-1].start()

    def worker(self, fault: Fault) -> Slot | None:
        """Return the victim once the fleet is whole, but for what is being done to it."""
        for slot in self.fleet.workers:
            if not slot.is_held:
                self.wait_for(slot)
        return self.wait_for(self.fleet.workers[fault.victim])

    def wait_for(self, slot: Slot) -> Slot | None:
        """Return a process once it is at work, or None if it does not get there."""
        if self.fleet.wait_until_up(slot, self.tick):
            return slot
        self.fleet.unexpected.append(f"process {slot.process.pid} is not at work, see {slot.process.log.name}")
        return None

    # Processes.

    def do_kill(self, fault: Fault) -> None:
        """SIGKILL of a worker."""
        slot = self.worker(fault)
        if slot is not None:
            self.fleet.kill(slot)
            self.count[fault.kind] += 1

    def do_kill_a_client(self, fault: Fault) -> None:
        """SIGKILL of a client."""
        slot = self.wait_for(self.fleet.clients[fault.victim])
        if slot is not None:
            self.fleet.kill(slot)
            self.count[fault.kind] += 1

    def do_terminate(self, fault: Fault) -> None:
        """SIGTERM of a worker, which drains."""
        slot = self.worker(fault)
        if slot is not None:
            self.fleet.injure(slot, fault.kind)
            slot.process.signal(signal.SIGTERM)
            self.count[fault.kind] += 1

    def do_stop(self, fault: Fault) -> None:
        """SIGSTOP of a worker, past its lease."""
        slot = self.worker(fault)
        if slot is None:
            return
        self.fleet.injure(slot, fault.kind)
        slot.process.signal(signal.SIGSTOP)
        process = slot.process
        self.hold_past_lease(slot, fault, lambda: process.signal(signal.SIGCONT))

    def hold_past_lease(self, slot: Slot, fault: Fault, end: Callable[[], None]) -> None:
        """Leave a worker alone with what is done to it, until that has outlasted its lease; only then it counts."""
        process, begun_at, lease_s = slot.process, time.monotonic(), self.lease_s
        slot.is_held = True

        def go_on() -> None:
            lasted_s = time.monotonic() - begun_at
            end()
            slot.is_held = False
            if lasted_s > lease_s and slot.process is process and process.is_running:
                self.count[fault.kind] += 1
            else:
                self.later(0, lambda: self.inject(fault))  # a run has killed it, or somebody is in a hurry: once more

        self.later(1.5 * lease_s + 1, go_on)

    # Data.

    def do_old_runs(self, fault: Fault) -> None:
        """Have completed runs be older than what retention keeps."""

        def age(connection: Any) -> None:
            aged = 0
            connection.execute(self.database.begin)
            rows = connection.execute(
                self.database.sql(
                    "SELECT id FROM action_retrier_runs WHERE completed_at > ? AND callback_state IN ('none', 'done', 'pending')"
                    " ORDER BY completed_at LIMIT ?"
                ),
                (_AGE_US, AGED),
            ).fetchall()
            for (run_id,) in rows:
                connection.execute("INSERT INTO crash_aged VALUES (?)".replace("?", self.database.sql("?")), (run_id,))
                update = (
                    "UPDATE action_retrier_runs SET completed_at = completed_at - ? WHERE id = ? AND completed_at > ?"
                )
                aged += connection.execute(self.database.sql(update), (_AGE_US, run_id, _AGE_US)).rowcount
            connection.execute("COMMIT")
            self.came_of_it[fault.kind] += aged

        self._as_a_user(fault.kind, age)
