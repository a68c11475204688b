"""A simulated process: its clocks, its randomness, and what may happen to it."""

from collections.abc import Callable, Coroutine
from contextvars import copy_context
from random import Random
from typing import Any

from .loop import LANE, Lane, SimulatedLoop

EPOCH_US = 1_767_225_600_000_000
"""The first of January 2026: when every simulation begins."""


class Process:
    """
    Runs on the loop in lanes of its own, until it dies: then nothing of it ever runs again.

    Args:
        rate: How fast its clocks go; *offset_s* is what its monotonic clock shows at the beginning.
        skew_s: How far its wall clock is off.
    """

    def __init__(
        self, loop: SimulatedLoop, name: str, seed: int, *, rate: float = 1.0, offset_s: float = 0.0, skew_s: float = 0
    ) -> None:
        self.loop = loop
        self.name = name
        self.rng = Random(seed)
        self.lane = Lane(self)
        self._lanes = [self.lane]
        self._rate = rate
        self._offset_s = offset_s
        self.skew_s = skew_s
        self.is_alive = True
        self.is_cut_off = False
        """Whether the database cannot be reached from here."""
        self.freezes = 0
        self.machine: Any = None
        """What it runs."""
        self.on_death: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return self.name

    def adopt(self, lane: Lane) -> None:
        """Take in a thread."""
        self._lanes.append(lane)

    def local_s(self, true_s: float) -> float:
        return true_s * self._rate + self._offset_s

    def true_s(self, local_s: float) -> float:
        return (local_s - self._offset_s) / self._rate

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Begin a task of this process."""
        context = copy_context()
        context.run(LANE.set, self.lane)
        return self.loop.create_task(work, context=context)

    # Accidents.

    def die(self) -> None:
        """SIGKILL."""
        if not self.is_alive:
            return
        self.is_alive = False
        for lane in self._lanes:
            lane.is_dead = True
            lane.ready.clear()
        for call in self.on_death:
            call()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and after a while SIGCONT: its clocks have gone on meanwhile."""
        lanes = list(self._lanes)
        for lane in lanes:
            self.loop.pause(lane)
        self.freezes += 1
        self.loop.call_on(self.loop.world, seconds, self._thaw, lanes)

    def _thaw(self, lanes: list[Lane]) -> None:
        self.freezes -= 1
        for lane in lanes:
            self.loop.resume(lane)

    def block(self, seconds: float) -> None:
        """Have its event loop blocked by user code; its threads go on."""
        self.loop.pause(self.lane)
        self.loop.call_on(self.loop.world, seconds, self.loop.resume, self.lane)

    def cut_off(self, seconds: float) -> None:
        """Have it reach the database no more, for a while."""
        if not self.is_cut_off:
            self.is_cut_off = True
            self.loop.call_on(self.loop.world, seconds, self._reconnect)

    def _reconnect(self) -> None:
        self.is_cut_off = False

    # As the library's clock.

    def now_us(self) -> int:
        return EPOCH_US + round((self.loop.now_s + self.skew_s) * 1e6)

    def monotonic_us(self) -> int:
        return round(self.local_s(self.loop.now_s) * 1e6)

    def call_later(self, delay_us: int, call: Callable[[], None]) -> Any:
        return self.loop.call_later(delay_us / 1e6, call)

    @staticmethod
    def subscribe(call: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    # As the library's source of randomness for ids.

    def token_bytes(self, count: int) -> bytes:
        return self.rng.randbytes(count)

    def randbits(self, count: int) -> int:
        return self.rng.getrandbits(count)
