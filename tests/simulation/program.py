"""What users of the library have written: actions and callbacks that do as they are told, well or badly."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from action_retrier import ActionRetrier, App, MutationCtx, NonRetryableError, RetryAfter, RunResult, _worker, app
from action_retrier._registry import Registry
from action_retrier.errors import DatabaseUnavailable
from action_retrier.testing import ManualClock

from .database import SimulatedDatabase
from .loop import running
from .process import Process

if TYPE_CHECKING:
    from .world import World

_AGAIN_S = 0.5
_TIMEOUT_MS = 1500
LONG_S = 2.0
"""A callback that takes so long, the first time, is cut off."""


def here() -> "Machine":
    """Return the process in whose turn this runs."""
    machine = running().lane.process.machine
    assert isinstance(machine, Machine)
    return machine


# What an action does is in its plan; how often it was executed is counted outside of processes, which die.


async def work(ctx: Any, plan: dict[str, Any]) -> dict[str, Any]:
    machine = here()
    nth = machine.executes(ctx)
    if nth <= plan["kills"]:
        machine.world.injected["an action kills its process"] += 1
        await asyncio.sleep(plan["takes"] * machine.process.rng.random())
        await machine.kill_here()
    if plan["blocks"] and nth == 1:
        machine.world.injected["an action blocks its event loop"] += 1
        machine.process.block(plan["blocks"])
    if plan["freezes"]:
        # The first execution goes on while the second is under way, if a lease has ended meanwhile.
        machine.world.injected["an action is stopped with its process"] += nth == 1
        if nth == 1:
            machine.process.freeze(plan["freezes"])
        await asyncio.sleep(_AGAIN_S if nth == 1 else plan["freezes"] / 2)
    if plan["stays"]:
        machine.world.injected["an action may ignore its cancellation"] += 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(plan["takes"])
        await asyncio.sleep(plan["stays"])
    elif plan["takes"]:
        await asyncio.sleep(plan["takes"])
    if plan["mutates"]:
        await ctx.run_mutation("noop")
    ctx.progress(0.5)
    return _ending(ctx, plan, nth)


def work_in_thread(ctx: Any, plan: dict[str, Any]) -> dict[str, Any]:
    machine = here()
    nth = machine.executes(ctx)
    machine.world.loop.block(plan["takes"])
    return _ending(ctx, plan, nth)


def _ending(ctx: Any, plan: dict[str, Any], nth: int) -> dict[str, Any]:
    if nth <= plan["fails"]:
        raise {
            "raise": ConnectionError("not yet"),
            "later": RetryAfter(500, "later"),
            "never": NonRetryableError("no"),
            "cancel": asyncio.CancelledError(),
        }[plan["how"]]
    return {"attempt": ctx.attempt}


async def done(ctx: MutationCtx, run_id: str, result: RunResult, context: Any) -> None:
    machine = here()
    nth = machine.calls_back(run_id, result)
    if nth <= context["kills"]:
        machine.world.injected["a callback kills its process"] += 1
        await machine.kill_here()
    _write(ctx, run_id, result)
    await asyncio.sleep(context["takes"] if nth == 1 else 0)
    _fail_perhaps(machine, context, nth)


def done_in_thread(ctx: MutationCtx, run_id: str, result: RunResult, context: Any) -> None:
    machine = here()
    nth = machine.calls_back(run_id, result)
    _write(ctx, run_id, result)
    machine.world.loop.block(context["takes"] if nth == 1 else 0)
    _fail_perhaps(machine, context, nth)


def _write(ctx: MutationCtx, run_id: str, result: RunResult) -> None:
    ctx.db.execute("INSERT INTO notes (run_id, result) VALUES (?, ?)", (run_id, result.type))


def _fail_perhaps(machine: "Machine", context: Any, nth: int) -> None:
    if nth <= context["fails"]:
        machine.world.injected["a callback raises"] += 1
        raise ValueError("not this time")


async def noop(ctx: MutationCtx) -> None:
    await asyncio.sleep(0.01 * here().process.rng.random())


_registry = Registry()
"""Shared by all: to look at signatures takes longer than half a history. What differs is `here`."""


def register() -> None:
    """Register the functions."""
    if _registry.actions:
        return
    with _making(SimulatedDatabase, None):
        program = App("sqlite:///simulated", clock=ManualClock())
    program.action(name="work")(work)
    program.action(name="thread")(work_in_thread)
    program.mutation(name="done", timeout_ms=_TIMEOUT_MS)(done)
    program.mutation(name="shared", isolation="read committed", timeout_ms=_TIMEOUT_MS)(done)
    program.mutation(name="threaded", isolation="read committed", timeout_ms=_TIMEOUT_MS)(done_in_thread)
    program.mutation(name="noop")(noop)


class Machine:
    """A process that runs this program, and perhaps a worker."""

    def __init__(self, world: "World", name: str) -> None:
        rng = world.rng
        clocks: dict[str, float] = {}
        if not world.is_host:
            clocks = {
                "rate": rng.uniform(0.99, 1.01),
                "offset_s": rng.uniform(0, 1e6),
                "skew_s": rng.choice([0.0, 0.3, -0.3, 60.0, -60.0, 86_400.0]),
            }
        self.world = world
        self.process = Process(world.loop, name, rng.getrandbits(64), **clocks)
        self.process.machine = self
        self.database = SimulatedDatabase(world.server, self.process)
        self._witness_renewals()
        self.process.on_death.append(lambda: world.server.bury(self.process))
        with _making(self.database, self.process.rng):
            self.app = App("sqlite:///simulated", clock=self.process)
        self.retrier = ActionRetrier(self.app, initial_backoff_ms=200, max_backoff_ms=2000, max_failures=2)
        self.workers: list[Any] = []
        """Those that have started."""
        self.is_stopping = False

    def _witness_renewals(self) -> None:
        leases, oracle, process = self.database.leases, self.world.oracle, self.process
        acquire, renew = leases.acquire, leases.renew

        def acquire_seen(worker: str) -> None:
            acquire(worker)
            oracle.renewed(worker, process)

        def renew_seen(worker: str) -> bool:
            renewed = bool(renew(worker))
            oracle.renewed(worker, process)
            return renewed

        leases.acquire, leases.renew = acquire_seen, renew_seen

    def executes(self, ctx: Any) -> int:
        """Return how often the run has been executed."""
        self.world.oracle.executed(self.process, ctx.run_id, ctx.attempt)
        return self.world.nth(f"execution of {ctx.run_id}")

    def calls_back(self, run_id: str, result: RunResult) -> int:
        """Return how often the callback has been called."""
        self.world.oracle.called_back(run_id, result)
        return self.world.nth(f"callback of {run_id}")

    async def kill_here(self) -> None:
        """Die in the middle of user code."""
        self.process.die()
        await asyncio.get_running_loop().create_future()

    async def work(self) -> None:
        """Begin a worker, or two, once the database can be reached."""
        rng = self.process.rng
        for _ in range(rng.choice([1, 1, 1, 1, 1, 2])):
            worker = self.app.worker(concurrency=rng.choice([1, 2, 5]), grace_ms=rng.choice([0, 500, 5000])).make()
            while True:
                try:
                    await worker.start()
                except DatabaseUnavailable:
                    await asyncio.sleep(_AGAIN_S)
                else:
                    self.workers.append(worker)
                    break

    async def rest(self) -> None:
        """Wait until there is nothing to do."""
        for worker in self.workers:
            await worker.until_idle()

    async def stop(self) -> None:
        """Stop the workers, as SIGTERM would."""
        self.is_stopping = True
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        loop = self.world.loop
        loop.call_on(loop.world, 0.001, self.process.die)


def _making(database: Any, rng: Any) -> contextlib.ExitStack:
    """Have an App get these."""
    stack = contextlib.ExitStack()
    for module, name, what in (
        (app, "open_database", database),
        (_worker, "system_random", rng),
        (app, "Registry", _registry),
    ):
        stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, lambda *_, what=what, **__: what)
    return stack
