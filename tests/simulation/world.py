"""
One seed's history: some processes with workers and clients, what they do, and what happens to them.

First everything goes wrong that the seed has in store, then nothing any more: all runs must end, and be called back,
within a time that is bounded, and every worker must come to rest and sign off.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from unittest import mock

from action_retrier import RetrierError, _ids, _leases, _worker
from action_retrier._threads import DaemonThreads

from .accidents import Accidents
from .client import Client
from .loop import SimulatedLoop, Stuck, running, threading
from .oracle import Oracle
from .process import Process
from .program import Machine, register
from .server import Server
from .store import Store

_LOOK_S = 0.2
_SHARE = 0.4  # of the histories, for what takes long
_PROMPTLY_S = 7.0  # after a long look a worker rests for 5 s
_WATCH_S = 0.75  # three times as long as it is: looking after others is half of what idle workers do
_PATIENCE_S = 500.0
"""After the last accident everything must have ended within this: suspects are executed one after the other."""
_LOGGER = logging.getLogger("action_retrier")


@dataclass(frozen=True)
class History:
    """What came of a seed."""

    seed: int
    violation: str | None
    digest: int
    virtual_s: float
    steps: int
    commits: int
    injected: Counter[str]
    trace: list[str] = field(repr=False)


class World:
    """Everything there is in one history."""

    def __init__(self, seed: int, store: Store, *, told: bool) -> None:
        self.rng = rng = Random(seed)
        self.loop = SimulatedLoop(Random(rng.getrandbits(64)))
        self.is_host = rng.random() < 0.5
        self.store = store
        self.oracle = Oracle(store, self.loop, told=told)
        self.server = Server(store, self.loop, is_host=self.is_host, direct=rng.random() < 0.7)
        self.server.witness = self.oracle
        self.oracle.server = self.server
        self.server.lies = rng.choice([0.0, 0.0, 0.02, 0.1])
        self.server.longest_way_s = rng.choice([0.005, 0.005, 0.005, 0.4])
        self.injected = self.server.injected
        self.longest_s = rng.choice([1.0, 1.0, 16.0])
        """How long an action may take: where a lease ends meanwhile, the report of a zombie meets its heir."""
        self.machines: list[Machine] = []
        self.clients: list[Machine] = []
        self._counts: Counter[str] = Counter()
        self._names = 0
        self.faults_until_s = rng.uniform(3, 10)
        self.is_calm = False

    def nth(self, what: str) -> int:
        """Count, over all processes: a process that dies forgets."""
        self._counts[what] += 1
        return self._counts[what]

    def new_machine(self, kind: str) -> Machine:
        self._names += 1
        return Machine(self, f"{kind}{self._names}")

    def hire(self) -> None:
        """Begin another process with a worker."""
        machine = self.new_machine("worker")
        self.machines.append(machine)
        machine.process.spawn(machine.work())

    # The story.

    async def live(self) -> None:
        rng = self.rng
        for _ in range(rng.choice([1, 2, 2, 3])):
            self.hire()
        ended = []
        for _ in range(2):
            machine = self.new_machine("client")
            self.clients.append(machine)
            ended.append(machine.process.spawn(Client(self, machine).live()))
        supervisor = asyncio.ensure_future(self._supervise())
        await self._trouble()
        self._calm_down()
        give_up_s = self.loop.now_s + _PATIENCE_S
        await asyncio.wait(ended, timeout=_PATIENCE_S)
        self.oracle.expect(all(task.done() for task in ended), "a client never comes to an end")
        for task in ended:
            if task.done() and task.exception() is not None:
                self.oracle.blame(f"a client was told {task.exception()!r}")
        await self._until(self.oracle.is_settled, give_up_s)
        self.oracle.expect(self.oracle.is_settled(), f"I1, I4: not ended: {self.oracle.unsettled()}")
        supervisor.cancel()
        await self._rest()
        self.oracle.check_end()

    async def _until(self, is_so: Callable[[], bool], give_up_s: float) -> None:
        while not is_so() and self.loop.now_s < give_up_s:  # noqa: ASYNC110 - virtual time is for nothing
            await asyncio.sleep(_LOOK_S)

    async def _rest(self) -> None:
        """Every worker comes to rest; one dies, which the others notice soon; the others sign off."""
        living = [machine for machine in self.machines if machine.process.is_alive and not machine.is_stopping]
        resting = {machine: machine.process.spawn(machine.rest()) for machine in living}

        def are_at_rest() -> bool:  # or dead: an attempt of a canceled run may still kill its process
            return all(task.done() or not machine.process.is_alive for machine, task in resting.items())

        await self._until(are_at_rest, self.loop.now_s + _PATIENCE_S)
        self.oracle.expect(are_at_rest(), "a worker never comes to rest")
        broken = [task.exception() for task in resting.values() if task.done() and task.exception() is not None]
        self.oracle.expect(not broken, f"a worker cannot rest: {broken}")
        living = [machine for machine in living if machine.process.is_alive]
        if living and self.rng.random() < _SHARE:
            await self._start_in_silence()
        if len(living) > 1 and self.rng.random() < _SHARE:
            await self._lose_one(living.pop())
        for machine in living:
            machine.process.spawn(machine.stop())
        give_up_s = self.loop.now_s + _PATIENCE_S
        await self._until(lambda: not any(machine.process.is_alive for machine in living), give_up_s)
        self.oracle.expect(not any(machine.process.is_alive for machine in living), "a worker does not stop")

    async def _start_in_silence(self) -> None:
        """Polling is the truth: what nobody is told of is found within two polls."""
        self.server.is_silent = True
        client, plan = self.clients[0], {"takes": 0, "fails": 0}
        starting = client.process.spawn(client.retrier.run(client.app, "thread", {"plan": plan}))
        await asyncio.wait([starting])
        began_s = self.loop.now_s
        await self._until(self.oracle.is_settled, began_s + _PROMPTLY_S + 20 * self.server.longest_way_s)
        self.oracle.expect(self.oracle.is_settled(), "nobody looks unless he is told")

    async def _lose_one(self, machine: Machine) -> None:
        """A lock file tells a death at once, to who looks: after a long look he rests; a lease takes two leases."""
        limit_s = 8.0 if self.is_host else 35.0
        workers = {worker.id for worker in machine.workers}
        self.server.end_sessions_of(machine.process)
        machine.process.die()
        self.oracle.note("world", f"{machine.process} dies")

        def is_buried() -> bool:
            return not workers & {row["id"] for row in self.store.rows("SELECT id FROM action_retrier_workers")}

        await self._until(is_buried, self.loop.now_s + limit_s)
        self.oracle.expect(is_buried(), f"I1: nobody noticed the death of {machine.process} within {limit_s:.0f} s")

    async def _supervise(self) -> None:
        """Replace workers that have died, and have one at least."""
        wanted = len(self.machines)
        while True:
            await asyncio.sleep(0.3 + self.rng.random())
            if sum(machine.process.is_alive for machine in self.machines) < wanted:
                self.hire()

    def _calm_down(self) -> None:
        self.is_calm = True
        self.server.lies = 0.0
        self.oracle.note("world", "all is calm")

    # What goes wrong.

    async def _trouble(self) -> None:
        rng, loop = self.rng, self.loop
        accidents = Accidents(self)
        longest_s = 0.0
        for at_s in sorted(rng.uniform(0.5, self.faults_until_s) for _ in range(rng.choice([0, 1, 2, 3, 5]))):
            await asyncio.sleep(at_s - loop.now_s)
            longest_s = max(longest_s, loop.now_s + accidents.happen())
        await asyncio.sleep(max(self.faults_until_s, longest_s) - loop.now_s)


class _OwnBugs(logging.Handler):
    """Hears of what the library itself calls unexpected."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO if world.oracle._tells else logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        lane = self._world.loop.lane
        if lane.process is not None and not lane.process.is_alive:
            return
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            self._world.oracle.blame(f"the library logged {record.getMessage()!r}: {error!r}")
        else:
            self._world.oracle.note(lane.process or "world", record.getMessage())


@contextlib.contextmanager
def simulated_threads() -> Iterator[None]:
    """Have the library's threads be simulated ones."""

    def submit(_: DaemonThreads, task: Callable[[], None]) -> None:
        running().start_thread(task)

    with (
        mock.patch.object(DaemonThreads, "submit", submit),
        mock.patch.object(_leases, "threading", threading),
        mock.patch.object(_ids, "secrets", _Secrets()),
        mock.patch.object(_worker, "_WATCH_S", _WATCH_S),
    ):
        register()
        yield


class _Secrets:
    """Ids are made by the randomness of the process that makes them."""

    @staticmethod
    def token_bytes(count: int) -> bytes:
        return _turn().token_bytes(count)

    @staticmethod
    def randbits(count: int) -> int:
        return _turn().randbits(count)


def _turn() -> Process:
    process = running().lane.process
    assert isinstance(process, Process)
    return process


def simulate(seed: int, store: Store, *, told: bool = False) -> History:
    """Live one history; *told* keeps the trace of all that happens."""
    store.empty()
    _ids._last_tick = 0
    world = World(seed, store, told=told)
    handler = _OwnBugs(world)
    level = _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(handler.level)
    propagated, _LOGGER.propagate = _LOGGER.propagate, False
    oracle = world.oracle
    try:
        try:
            world.loop.run_until_complete(world.live())
        except (Stuck, RetrierError) as error:
            oracle.blame(f"{type(error).__name__}: {error}")
        for error in world.loop.errors:
            oracle.blame(f"the event loop was told {error}")
        steps, virtual_s = world.loop.steps, world.loop.now_s
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(logging.CRITICAL + 1)  # what is left is thrown out of its coroutines, and complains
        world.loop.close()
        _LOGGER.setLevel(level)
        _LOGGER.propagate = propagated
    oracle.note("world", f"ends after {steps} steps")
    return History(
        seed, oracle.violation, oracle.digest, virtual_s, steps, oracle.commits, world.injected, oracle.trace
    )
