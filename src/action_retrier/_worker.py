"""The worker's loop: claim, run, report, drain."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from ._clock import Clock
from ._completion import Completion
from ._contexts import StopReason
from ._execution import STOP_GRACE_S, Execution, Executions, Key
from ._incarnation import Incarnation
from ._lanes import Lanes, Pace
from ._lifecycle import Outcome
from ._maintenance import Maintenance
from ._mutations import Mutations
from ._ops.claims import NextDue, claim_runs, next_due
from ._ops.reports import lost_attempts, store_progress
from ._ops.workers import give_back, owned_by, recover_worker
from ._policy import to_us
from ._registry import Registry
from ._reporter import Reporter
from ._statements import Row
from ._suspects import PROBATION_S
from .config import logger
from .drivers import Database
from .errors import DatabaseUnavailable

POLL_S = 1.0
"""Polling is the truth; wake-ups only make it fast."""
_WATCH_S = 0.25
_PROGRESS_S = 1.0
_FLUSH_GRACE_S = 10.0
_LOST_RACE_S = 0.002
_LONGEST_RACE_S = 0.25  # what is due may not be ours to take: after an outage our own lease has to be renewed first
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
        self._claiming = False
        self._claims = 0
        self._lost_races = 0
        self._lanes = Lanes()
        self._watch_pace = Pace()
        self._backlog = False  # the last claim brought all that was asked for: there may be more
        self._asked_s = 0.0
        self._stopping = self._stopped = False
        self._hurried = asyncio.Event()
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()  # something ended: whoever drains looks again
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    # Life.

    async def start(self) -> None:
        """Announce this worker and begin."""
        self._loop = asyncio.get_running_loop()
        await self._incarnation.begin()
        self._subscription = self._database.changes.subscribe(self._wake_from_thread)
        self._unsubscribe_clock = self._engine.clock.subscribe(self._wake_from_thread)
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

    async def until_idle(self) -> None:
        """Return when nothing that this worker can run, or call back, is due or under way."""
        if self._stopped:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._idle_waiters.append(waiter)
        self._wake.set()
        await waiter

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
        self._wake.set()
        self._executions.give_back_unbegun()
        self._reporter.stop()
        logger.info("worker %s stops: %d attempts are under way", self.id, len(self._executions))
        timer = self._engine.clock.call_later(self._grace_us, self._hurried.set)
        await self._wait_until(lambda: not self._executions and not self._claiming, or_when=self._hurried)
        timer.cancel()
        self._executions.stop_begun("shutting_down")
        await _within(2 * STOP_GRACE_S, self._wait_until(lambda: not self._executions.live and not self._claiming))
        await _within(_FLUSH_GRACE_S, self._wait_until(lambda: not self._reporter.is_busy))
        await self._close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._subscription.close()
        self._unsubscribe_clock()
        self._executions.close()
        worker = self.id
        try:
            # What could not be reported in time is settled like a dead worker's: nothing is left behind.
            begun = self._executions.begun() | self._reporter.unwritten_begun()
            await self._database.write(
                lambda: recover_worker(worker, self._engine.rng, begun), patience_s=_FLUSH_GRACE_S
            )
        except DatabaseUnavailable as error:
            # Others will notice the free lease and recover what is left.
            logger.warning("worker %s could not sign off: %s", worker, error.problem)
        self._incarnation.end()
        self._stopped = True
        for waiter in self._idle_waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._executions:
            logger.warning("worker %s leaves %d attempts behind that do not react", worker, len(self._executions))
        logger.info("worker %s has stopped", worker)

    async def _forever(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        """Repeat *body*; whatever it raises, the worker lives on."""
        backoff = _SHORTEST_BACKOFF_S
        while True:
            try:
                await body()
            except DatabaseUnavailable as error:
                logger.warning("%s: %s; trying again in %.1f s", name, error.problem, backoff)
            except Exception:  # noqa: BLE001 - the loop's boundary: our own bug must not end the worker
                logger.exception("%s: unexpected error; trying again in %.1f s", name, backoff)
            else:
                backoff = _SHORTEST_BACKOFF_S
                continue
            await asyncio.sleep(backoff * (0.5 + self._engine.rng.random()))
            backoff = min(backoff * 2, _LONGEST_BACKOFF_S)

    # Claim.

    async def _claim_once(self) -> None:
        """Claim what there is room for; when there is nothing, sleep until there may be."""
        self._wake.clear()
        waiters, self._idle_waiters = self._idle_waiters, []
        try:
            if self._stopping:
                await self._wake.wait()
                return
            await self._incarnation.announce_news()
            look_again_s = await self._subscription.tune(self.id, busy=self._backlog)
            free = self._executions.free
            if self._backlog and free > 0 and not self._must_look_everywhere() and await self._claim(free):
                return
            if self._backlog and not waiters and self._loop.time() - self._asked_s < POLL_S / 2:
                await self._sleep(NextDue(None, None), POLL_S)  # all slots are taken, and there is more: nothing to ask
                return
            # From here on commits wake us; what was committed before is seen by the question.
            self._subscription.active = True
            claimant, suspects = self._incarnation.claimant, self._executions.suspects
            allowance, for_callbacks = suspects.allowance(self._loop.time()), suspects.callback_allowance
            self._asked_s = self._loop.time()
            # What is under way now may leave something due that the question does not see yet.
            was_at_rest = self._is_at_rest
            everywhere = bool(waiters) or self._lanes.pace.is_due(self._asked_s)
            lanes = None if everywhere else self._lanes.to_json()
            due = await self._database.read(lambda: next_due(claimant, allowance, for_callbacks, lanes))
            if everywhere:
                self._lanes.pace.took(self._asked_s, self._loop.time())
                self._lanes.found(due.lanes)
            if due.callbacks_us is not None and due.callbacks_us <= 0:
                self._reporter.callbacks_are_due()
            if due.deadline_us is not None and due.deadline_us <= 0 and await self._maintenance.expire():
                return  # a deadline does not wait for a slot
            work_is_due = due.work_us is not None and due.work_us <= 0
            if work_is_due and free > 0:
                # Asked first and claimed then: a commit wakes every idle worker, and only one of them
                # should take the write lock for it.
                await self._claim_in_a_race(free)
                return
            if waiters and not work_is_due and was_at_rest:
                await self._tell_of_idleness(waiters)
            rest_s = self._lanes.pace.rest_s(self._loop.time())
            await self._sleep(due, min(POLL_S, look_again_s or POLL_S, rest_s or POLL_S))
        finally:
            self._subscription.active = False
            self._idle_waiters += [waiter for waiter in waiters if not waiter.done()]

    def _must_look_everywhere(self) -> bool:
        """Whether the lanes that are known may be too old: a new one may be more urgent than all of them."""
        now_s = self._loop.time()
        return now_s - self._lanes.pace.last_s >= POLL_S and self._lanes.pace.is_due(now_s)

    async def _claim_in_a_race(self, free: int) -> None:
        """Claim what was due a moment ago; if somebody else was faster, give him time before the next question."""
        if await self._claim(free):
            self._lost_races = 0
            return
        await asyncio.sleep(min(_LOST_RACE_S * 2**self._lost_races, _LONGEST_RACE_S))
        self._lost_races += 1

    async def _claim(self, free: int) -> bool:
        """Claim and begin; tell whether there may be more."""
        claimant = self._incarnation.claimant
        allowance = self._executions.suspects.allowance(self._loop.time())
        self._claiming = True
        self._claims += 1
        try:
            lanes = self._lanes.to_json()
            claimed = await self._database.write(lambda: claim_runs(claimant, free, allowance, lanes))
            self._lanes.took(claimed.runs)
            if not claimed.registered:
                await self._incarnation.begin_again(claimant.id)
                return True
            claimed_at_us = self._engine.clock.monotonic_us()
            for row in [*claimed.suspects, *claimed.runs]:
                self._begin(row, claimed_at_us)
        finally:
            self._claiming = False
            self._changed.set()
        if claimed.suspects:
            self._loop.call_later(PROBATION_S, self._wake.set)
        count = len(claimed.runs) + len(claimed.suspects)
        self._backlog = count >= free
        return count > 0

    def _begin(self, row: Row, claimed_at_us: int) -> None:
        try:
            self._executions.begin(row, self._engine.registry.actions[row["action"]], claimed_at_us)
        except Exception:  # noqa: BLE001 - our own bug, or a damaged row: its neighbours begin all the same
            logger.exception("run %s could not be begun; it is given back", row["id"])

    async def _tell_of_idleness(self, waiters: list[asyncio.Future[None]]) -> None:
        await self._maintenance.prune_if_due()
        if not self._is_at_rest:
            return
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def _is_at_rest(self) -> bool:
        return not self._executions and not self._reporter.is_busy

    async def _sleep(self, due: NextDue, poll_s: float) -> None:
        """Sleep until something is due, somebody wakes us, or it is time to look anyway."""
        poll = self._loop.call_later(poll_s * (0.75 + self._engine.rng.random() / 4), self._wake.set)
        waits_us = [us for us in (due.work_us, due.callbacks_us) if us is not None and 0 < us < POLL_S * 1e6]
        timers = [poll, *(self._engine.clock.call_later(us, self._wake.set) for us in waits_us)]
        try:
            await self._wake.wait()
        finally:
            for timer in timers:
                timer.cancel()

    def _wake_from_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake.set)

    # Report.

    def _report(self, execution: Execution, outcome: Outcome) -> None:
        self._reporter.report(execution, outcome, self.id)

    def _something_ended(self) -> None:
        self._wake.set()
        self._changed.set()

    # Watch.

    async def _watch_once(self) -> None:
        """Learn which attempts are not ours any more, and look after workers that have died."""
        await _within(_WATCH_S, self._incarnation.in_doubt.wait())
        await self._incarnation.check()
        keys = self._executions.keys()
        if keys:
            lost = await self._database.read(lambda: lost_attempts(keys))
            for run_id, attempt, state in lost:
                reason: StopReason = "canceled" if state in {None, "canceled"} else "lease_lost"
                self._executions.stop_begun(reason, [(run_id, attempt)])
        began_s = self._loop.time()
        if not self._stopping and self._watch_pace.is_due(began_s):
            await self._give_back_strays()
            if await self._maintenance.recover_dead(self.id):
                self._wake.set()
            self._watch_pace.took(began_s, self._loop.time())
        if not self._stopping:
            await self._maintenance.prune_if_due()
            await self._maintenance.warn_if_due()

    async def _give_back_strays(self) -> None:
        """
        Give back what is ours in the database, and not known here: what a claim that went wrong has left.

        Only while no claim is under way, and what has ended is known until its report is written.
        """
        if self._claiming:
            return
        worker, claims, known, called = self.id, self._claims, self._known(), self._reporter.callbacks
        owned = await self._database.read(lambda: owned_by(worker))
        await self._reporter.return_strays(owned.callbacks, worker, called)
        strays = owned.attempts - known - self._known()
        if strays and claims == self._claims and worker == self.id:
            logger.error("worker %s owns %d runs that it does not execute; they are given back", worker, len(strays))
            await self._database.write(lambda: give_back(worker, strays, self._engine.rng))
            self._wake.set()

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
