"""The processes of a soak, and a supervisor that starts them again when they have died."""

import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from crash_processes import Process

GIVE_UP_S = 60
PAUSE_S = 0.02
_NO_DATABASE = "action_retrier.errors.DatabaseUnavailable: "
NORMAL = {0, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, 3}
"""How a worker's process may end: told to, or by what a run, or we, did to it. 3 is what `LETHAL` exits with."""


def now_us() -> int:
    """Return the instant, as the log of executions has it."""
    return time.monotonic_ns() // 1000


@dataclass
class Slot:
    """
    A place in the fleet, and the process that has it now.

    Attributes:
        start: Starts another one.
        ready: The word that it says when it is at work.
        is_held: It has been stopped, and is not to be touched.
    """

    start: Callable[[], Process]
    ready: str
    process: Process = field(init=False)
    is_held: bool = False
    is_wanted: bool = True

    def __post_init__(self) -> None:
        self.process = self.start()

    @property
    def is_up(self) -> bool:
        """Whether it is at work."""
        return not self.is_held and self.process.is_running and bool(self.process.said(self.ready))


class Fleet:
    """All workers and clients."""

    def __init__(self) -> None:
        self.workers: list[Slot] = []
        self.clients: list[Slot] = []
        self.injuries: dict[int, list[tuple[int, str]]] = defaultdict(list)
        """What was done to a process, by its id: when, and what."""
        self.unexpected: list[str] = []
        self.starts_in_vain = 0
        """Processes that ended because the database could not be reached as they began."""
        self.deaths_of_their_own = 0
        """Processes that a run, or a callback, has killed."""

    def supervise(self) -> None:
        """Start again whoever has died."""
        for slot in (*self.workers, *self.clients):
            if slot.process.is_running or not slot.is_wanted:
                continue
            self._bury(slot)
            slot.process = slot.start()

    def _bury(self, slot: Slot) -> None:
        process = slot.process
        code = process.wait()
        is_ours = any(what in {"kill", "kill at a write", "terminate"} for _, what in self.injuries[process.pid])
        if not is_ours and code not in {0, 1} and slot in self.workers:
            self.injuries[process.pid].append((now_us(), "own death"))
            self.deaths_of_their_own += 1
        if code == 1 and _NO_DATABASE in process.log.read_text("utf-8", "replace")[-1000:]:
            self.starts_in_vain += 1
        elif code not in NORMAL or (code == 0 and slot.is_wanted and not is_ours):
            self.unexpected.append(f"process {process.pid} ended with {code}, see {process.log.name}")
        process.close()

    def injure(self, slot: Slot, what: str) -> None:
        """Note that something is being done to a worker."""
        self.injuries[slot.process.pid].append((now_us(), what))

    def kill(self, slot: Slot, what: str = "kill") -> None:
        """End a process by SIGKILL."""
        self.injure(slot, what)
        slot.process.kill()

    def wait_until_up(self, slot: Slot, tick: Callable[[], None] = lambda: None) -> bool:
        """Wait until a process is at work, with *tick* called again and again; False: not in time."""
        give_up_at = time.monotonic() + GIVE_UP_S
        while not slot.is_up:
            self.supervise()
            tick()
            if time.monotonic() > give_up_at:
                return False
            self.pause()
        return True

    @staticmethod
    def pause() -> None:
        """Wait a moment for something that no signal tells of."""
        time.sleep(PAUSE_S)

    def end(self, slots: list[Slot]) -> None:
        """Have processes end as a supervisor does, or, if they are clients, as their input does."""
        for slot in slots:
            if slot in self.workers:
                self.wait_until_up(slot)
            slot.is_wanted = False
            if slot in self.workers:
                self.injure(slot, "terminate")
                slot.process.signal(signal.SIGTERM)
            else:
                slot.process.end_input()
        for slot in slots:
            with contextlib.suppress(Exception):
                slot.process.wait(GIVE_UP_S)
            if slot.process.is_running:
                self.unexpected.append(f"process {slot.process.pid} does not end, see {slot.process.log.name}")
                self.kill(slot)
            self._bury(slot)
