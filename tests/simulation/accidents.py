"""What happens to processes, to the database, and to the way between them."""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from .program import Machine

if TYPE_CHECKING:
    from .world import World


class Accidents:
    """Has one thing after the other go wrong; each returns how long it lasts."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng: Random = world.rng
        both = [self._crash] * 3 + [self._freeze] * 2 + [self._block, self._outage, self._stop, self._suspend]
        on_host = [self._remove_lock_file]
        with_server = [self._cut_off] * 2 + [self._lose_host, self._move_clock, self._cut_all]
        self._kinds: list[Callable[[Machine, float], float]] = both + (on_host if world.is_host else with_server)

    def happen(self) -> float:
        """Have something happen; return how long it lasts."""
        rng, world = self._rng, self._world
        happens = rng.choice(self._kinds)
        seconds = rng.choice([rng.uniform(0.1, 4), rng.uniform(8, 13), rng.uniform(10.5, 16)])
        workers = [one for one in world.machines if one.process.is_alive]
        if not workers:
            return 0
        machine = rng.choice(workers)
        what = happens.__name__.strip("_").replace("_", " ")
        world.injected[what] += 1
        world.oracle.note("world", f"{what}: {machine.process} for {seconds:.2f} s")
        return happens(machine, seconds)

    def _crash(self, machine: Machine, _: float) -> float:
        self._world.server.end_sessions_of(machine.process)
        machine.process.die()
        return 0

    @staticmethod
    def _lose_host(machine: Machine, _: float) -> float:
        machine.process.die()  # and nobody tells the server
        return 0

    @staticmethod
    def _freeze(machine: Machine, seconds: float) -> float:
        machine.process.freeze(seconds)
        return seconds

    @staticmethod
    def _block(machine: Machine, seconds: float) -> float:
        machine.process.block(seconds)
        return seconds

    def _suspend(self, _: Machine, seconds: float) -> float:
        """Put the machine to sleep, with all that is on it."""
        for one in [*self._world.machines, *self._world.clients]:
            if one.process.is_alive:
                one.process.freeze(seconds)
        return seconds

    def _outage(self, _: Machine, seconds: float) -> float:
        self._world.server.go_down(seconds, restarts=self._rng.random() < 0.5)
        return seconds

    def _cut_off(self, machine: Machine, seconds: float) -> float:
        machine.process.cut_off(seconds)
        if self._rng.random() < 0.7:  # the server notices
            loop, server = self._world.loop, self._world.server
            loop.call_on(loop.world, self._rng.uniform(1, 8), server.end_sessions_of, machine.process)
        return seconds

    def _cut_all(self, _: Machine, seconds: float) -> float:
        """Have a middlebox forget all sessions; not everybody gets a new one at once."""
        for one in self._world.machines:
            if one.process.is_alive:
                self._world.server.end_sessions_of(one.process)
                one.process.cut_off(self._rng.uniform(0, min(seconds, 5)))
        return seconds

    @staticmethod
    def _stop(machine: Machine, _: float) -> float:
        if not machine.is_stopping and machine.workers:
            machine.is_stopping = True  # even if it cannot hear of it yet
            machine.process.spawn(machine.stop())
        return 0

    def _move_clock(self, machine: Machine, _: float) -> float:
        machine.process.skew_s += self._rng.choice([-3600.0, 3600.0, 5.0, -5.0])
        return 0

    def _remove_lock_file(self, machine: Machine, _: float) -> float:
        files = self._world.server.files
        for name in [name for name, holder in files.holder.items() if holder is machine.process]:
            self._world.oracle.tampered.add(name.removesuffix(".lock"))
            files.remove(name)
        return 0
