"""The worker's loop: claim, run, report, drain."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Self

from ._claiming import Claiming
from ._clock import Clock
from ._completion import Completion
from ._contexts import StopReason
from ._execution import STOP_GRACE_S, Execution, Executions, Key
from ._ids import system_random
from ._incarnation import Incarnation
from ._lifecycle import Outcome
from ._maintenance import Maintenance
from ._mutations import Mutations
from ._ops.claims import ANY_LOSSES, next_due
from ._ops.reports import lost_attempts, store_progress
from ._ops.workers import give_back, owned_by, recover_worker
from ._pace import Pace
from ._policy import to_us
from ._registry import Registry
from ._reporter import Reporter
from ._strays import Strays
from .config import logger
from .drivers import Database
from .errors import DatabaseUnavailable

_WATCH_S = 0.25
_STRAYS_S = 1.0
"""How often it is looked for what a claim that went wrong has left."""
_PROGRESS_S = 1.0
_FLUSH_GRACE_S = 10.0
_SHORTEST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True)
class Engine:
    """What a worker works with."""

    database: Database
    registry: Registry
    mutations: Mutations
    clock: Clock
    rng: Random
    namespace: str
    retention_us: int

    @classmethod
    def on(cls, database: Database, registry: Registry, clock: Clock, *, namespace: str, retention_us: int) -> Self:
        """Return what works with *database*."""
        rng = system_random()
        mutations = Mutations(database, registry, clock, rng)
        return cls(database, registry, mutations, clock, rng, namespace, retention_us)


class Worker:
    """
    Executes due runs until it is stopped.

    ``async with app.worker() as worker`` makes one; `until_idle` waits for it in tests and scripts.
    """

    def __init__(self, engine: Engine, *, concurrency: int, queues: list[str] | None, grace_ms: float) -> None:
        self._engine = engine
        self._database = engine.database
        self._concurrency = concurrency
        self._grace_us = to_us(grace_ms)
        self._executions = Executions(
            database=engine.database,
            mutations=engine.mutations,
            clock=engine.clock,
            concurrency=concurrency,
            may_begin=lambda: self._incarnation.holds_lease,
            report=self._report,
            ended=self._something_ended,
        )
        self._reporter = Reporter(
            database=engine.database,
            completion=Completion(engine.database, engine.registry, engine.mutations, engine.rng),
            clock=engine.clock,
            rng=engine.rng,
            changed=self._something_ended,
        )
        self._maintenance = Maintenance(
            engine.database, engine.clock, engine.rng, engine.namespace, engine.retention_us
        )
        self._incarnation = Incarnation(
            engine.database,
            engine.registry,
            engine.namespace,
            queues,
            taken_for_dead=lambda: self._executions.stop_begun("lease_lost"),
        )
        self._claiming = Claiming(
            database=engine.database,
            registry=engine.registry,
            clock=engine.clock,
            rng=engine.rng,
            executions=self._executions,
            reporter=self._reporter,
            maintenance=self._maintenance,
            incarnation=self._incarnation,
        )
        self._strays = Strays()
        self._watch_pace = Pace()
        self._next_strays_s = self._next_look_s = 0.0
        self._stopping = self._stopped = False
        self._hurried = asyncio.Event()
        self._changed = asyncio.Event()  # something ended: whoever drains looks again
        self._tasks: list[asyncio.Task[None]] = []

    # Life.

    async def start(self) -> None:
        """Announce this worker and begin."""
        self._loop = asyncio.get_running_loop()
        await self._incarnation.begin()
        self._claiming.begin()
        suspects = self._executions.suspects
        bodies: dict[str, Callable[[], Awaitable[None]]] = {
            "claim": self._claim_once,
            "report": self._reporter.write_once,
            "callback": lambda: self._reporter.call_back_once(lambda: self._incarnation.claimant, suspects),
            "watch": self._watch_once,
            "progress": self._progress_once,
        }
        for name, body in bodies.items():
            self._tasks.append(asyncio.create_task(self._forever(name, body), name=f"action-retrier-{name}"))
        logger.info(
            "worker %s works on %s (namespace %s, concurrency %d)",
            self.id,
            self._database.location,
            self._engine.namespace,
            self._concurrency,
        )

    @property
    def id(self) -> str:
        """The id of this incarnation."""
        return self._incarnation.claimant.id

    @property
    def abandoned(self) -> int:
        """How many attempts still execute although they were told to stop."""
        return len(self._executions)

    async def recover_dead(self) -> None:
        """Settle what dead workers have left now, instead of at the next look."""
        if await self._maintenance.recover_dead(self.id):
            self._claiming.somebody_has_died()

    async def next_due_us(self) -> int | None:
        """Tell in how long there is something for this worker to do; negative is overdue, None is never."""
        claimant = self._incarnation.claimant
        due = await self._database.read(lambda: next_due(claimant, ANY_LOSSES))
        times = [us for us in (due.work_us, due.callbacks_us, due.deadline_us) if us is not None]
        return min(times, default=None)

    async def until_idle(self) -> None:
        """Return when nothing that this worker can run, or call back, is due or under way."""
        if self._stopped:
            return
        await self._claiming.until_idle()

    def hurry(self) -> None:
        """End the grace time now."""
        self._hurried.set()

    async def stop(self) -> None:
        """
        Claim nothing new, let what has begun end within the grace time, then stop it.

        What was claimed and has not begun is given back at once and costs nothing. What has to
        be stopped counts as a failure, ``WorkerStopped``.
        """
        if self._stopping:
            return
        self._stopping = True
        self._claiming.stop()
        self._executions.give_back_unbegun()
        self._reporter.stop()
        logger.info("worker %s stops; attempts under way: %d", self.id, len(self._executions))
        try:
            await self._let_end()
        finally:  # whoever cancels this wants less patience, and no worker that holds what it does not execute
            await self._close()

    async def _let_end(self) -> None:
        """Let what has begun end, or stop it, and what has ended be written."""
        timer = self._engine.clock.call_later(self._grace_us, self._hurried.set)
        try:
            await self._wait_until(
                lambda: not self._executions and not self._claiming.is_under_way, or_when=self._hurried
            )
        finally:
            timer.cancel()
            self._executions.stop_begun("shutting_down")
        await _within(
            2 * STOP_GRACE_S, self._wait_until(lambda: not self._executions.live and not self._claiming.is_under_way)
        )
        await _within(_FLUSH_GRACE_S, self._wait_until(lambda: not self._reporter.is_busy))

    async def _close(self) -> None:
        signed_off = False
        try:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            signed_off = await self._sign_off()
        finally:  # canceled once more, even: a lease that is renewed without a worker would keep its runs for ever
            self._claiming.close()
            self._executions.close()
            self._incarnation.end(signed_off=signed_off)
            self._stopped = True
            self._claiming.tell_of_the_end()
        worker = self.id
        if self._executions:
            logger.warning("worker %s leaves %d attempts behind that do not react", worker, len(self._executions))
        logger.info("worker %s has stopped", worker)

    async def _sign_off(self) -> bool:
        """Settle what could not be reported in time like a dead worker's, and remove the row; False: others have to."""
        worker, begun = self.id, self._executions.begun() | self._reporter.unwritten_begun()
        try:
            await self._database.write(
                lambda: recover_worker(worker, self._engine.rng, begun), patience_s=_FLUSH_GRACE_S
            )
        except DatabaseUnavailable as error:
            logger.warning("worker %s could not sign off: %s", worker, error.problem)
            return False
        return True

    async def _forever(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        """Repeat *body*; whatever it raises, the worker lives on."""
        backoff = _SHORTEST_BACKOFF_S
        while True:
            began_s = self._loop.time()
            try:
                await body()
            except DatabaseUnavailable as error:
                if self._loop.time() - began_s > _LONGEST_BACKOFF_S:
                    backoff = _SHORTEST_BACKOFF_S  # the database has waited for better times already
                logger.warning("%s: %s; trying again in %.1f s", name, error.problem, backoff)
            except Exception:  # noqa: BLE001 - the loop's boundary: our own bug must not end the worker
                logger.exception("%s: unexpected error; trying again in %.1f s", name, backoff)
            else:
                backoff = _SHORTEST_BACKOFF_S
                continue
            await asyncio.sleep(backoff * (0.5 + self._engine.rng.random()))
            backoff = min(backoff * 2, _LONGEST_BACKOFF_S)

    async def _claim_once(self) -> None:
        try:
            await self._claiming.once()
        finally:
            self._changed.set()

    # Report.

    def _report(self, execution: Execution, outcome: Outcome) -> None:
        self._reporter.report(execution, outcome, self.id)

    def _something_ended(self) -> None:
        self._claiming.wake()
        self._changed.set()

    # Watch.

    async def _watch_once(self) -> None:
        """Learn which attempts are not ours any more, and look after workers that have died."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_WATCH_S):
                await self._incarnation.in_doubt.wait()
        await self._incarnation.check()
        keys = self._executions.keys()
        if keys:
            lost = await self._database.read(lambda: lost_attempts(keys))
            for run_id, attempt, state in lost:
                reason: StopReason = "canceled" if state in {None, "canceled"} else "lease_lost"
                self._executions.stop_begun(reason, [(run_id, attempt)])
        began_s = self._loop.time()
        if not self._stopping and self._watch_pace.is_due(began_s):
            if began_s >= self._next_strays_s:
                self._next_strays_s = began_s + _STRAYS_S - _WATCH_S / 2
                await self._give_back_strays()
            if began_s >= self._next_look_s:
                await self.recover_dead()
                self._next_look_s = began_s + self._maintenance.look_again_s - _WATCH_S / 2  # a whole number of rounds
            self._watch_pace.took(began_s, self._loop.time())
        if not self._stopping:
            await self._maintenance.prune_if_due()
            await self._maintenance.warn_if_due()

    async def _give_back_strays(self) -> None:
        """
        Give back what is ours in the database, and not known here: what a claim that went wrong has left.

        What has ended is known until its report is written.
        """
        worker, answered, known, called = self.id, self._claiming.answered, self._known(), self._reporter.callbacks
        owned = await self._database.read(lambda: owned_by(worker))
        unknown = owned.attempts - known - self._known()
        strays = self._strays.judge(worker, unknown, asked=self._claiming.asked, answered=answered)
        await self._reporter.return_strays(owned.callbacks, worker, called)
        if strays and worker == self.id:
            logger.error("worker %s owns %d runs that it does not execute; they are given back", worker, len(strays))
            await self._database.write(lambda: give_back(worker, strays, self._engine.rng))
            self._claiming.wake()

    def _known(self) -> set[Key]:
        return self._executions.known() | self._reporter.unwritten()

    async def _progress_once(self) -> None:
        await asyncio.sleep(_PROGRESS_S)
        told = self._executions.take_progress()
        if told:
            await self._database.write(lambda: store_progress(told))

    async def _wait_until(self, is_true: Callable[[], bool], or_when: asyncio.Event | None = None) -> None:
        while not is_true() and not (or_when is not None and or_when.is_set()):
            self._changed.clear()
            waits = [asyncio.ensure_future(self._changed.wait())]
            if or_when is not None:
                waits.append(asyncio.ensure_future(or_when.wait()))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()


async def _within(limit_s: float, what: Awaitable[Any]) -> None:
    """Wait for *what*, but no longer than *limit_s*."""
    task = asyncio.ensure_future(what)
    try:
        await asyncio.wait({task}, timeout=limit_s)
    finally:
        task.cancel()
