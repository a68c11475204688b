"""The worker's loop: claim, run, report, drain."""

import asyncio
import contextlib
import json
import os
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from . import _attempt
from ._clock import Clock
from ._completion import Completion, Report
from ._contexts import ActionCtx, AttemptSignals, StopReason, SyncActionCtx
from ._ids import new_worker_id
from ._leases import Heartbeat
from ._lifecycle import (
    Attempted,
    DeadlinePassed,
    NotBegun,
    Outcome,
    Succeeded,
    TimedOut,
    WorkerStopped,
    settle,
)
from ._maintenance import Maintenance
from ._mutations import Mutations
from ._ops.claims import Claimant, claim_callbacks, claim_runs, next_due
from ._ops.reports import lost_attempts, return_callbacks, store_progress
from ._ops.workers import list_workers, recover_worker, register_worker
from ._policy import RetryPolicy, policy_from_json, to_us
from ._registry import Action, Registry
from ._statements import Row
from ._suspects import PROBATION_S, Suspects
from ._threads import DaemonThreads
from .config import logger
from .drivers import Database
from .errors import DatabaseUnavailable

POLL_S = 1.0
"""Polling is the truth; wake-ups only make it fast."""
_WATCH_S = 0.25
_PROGRESS_S = 1.0
_STOP_GRACE_S = 1.0  # an attempt that does not react to being stopped for so long is abandoned
_FLUSH_GRACE_S = 10.0
_CALLBACK_BATCH = 10
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


class _Execution:
    """One attempt that this worker executes."""

    __slots__ = ("action", "attempted", "begun", "claimed_at_us", "context", "on_complete", "reported", "row", "signals", "task", "timers")

    def __init__(self, row: Row, action: Action[Any, Any, Any], policy: RetryPolicy, claimed_at_us: int) -> None:
        self.row = row
        self.action = action
        self.attempted = Attempted(row["failures"], row["losses"], policy, row["deadline_in"])
        self.claimed_at_us = claimed_at_us
        self.signals = AttemptSignals()
        self.begun = False
        self.reported = False
        self.task: asyncio.Task[Outcome] | None = None
        self.timers: list[Any] = []

    @property
    def key(self) -> tuple[str, int]:
        """What is unique about it."""
        return self.row["id"], self.row["attempt"]


class Worker:
    """
    Executes due runs until it is stopped.

    ``async with app.worker() as worker`` makes one; `until_idle` waits for it in tests and scripts.
    """

    def __init__(self, engine: Engine, *, concurrency: int, queues: list[str] | None, grace_ms: float) -> None:
        self._engine = engine
        self._database = engine.database
        self._concurrency = concurrency
        self._queues = queues
        self._grace_us = to_us(grace_ms)
        self._completion = Completion(engine.database, engine.registry, engine.mutations, engine.rng)
        self._threads = DaemonThreads(concurrency, "action-retrier-action")
        self._executions: dict[tuple[str, int], _Execution] = {}
        self._suspects = Suspects()
        self._reports: list[Report] = []
        self._callback_reports: list[Report] = []
        self._unsettled = 0  # reports that have not been written yet
        self._calling = 0  # callbacks that are being called
        self._claiming = False
        self._stopping = False
        self._hurried = asyncio.Event()
        self._claim_wake = asyncio.Event()
        self._report_wake = asyncio.Event()
        self._callback_wake = asyncio.Event()
        self._callbacks_are_due = False
        self._changed = asyncio.Event()  # something ended: drain and until_idle look again
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._lease_check = asyncio.Event()

    # Life.

    async def start(self) -> None:
        """Announce this worker and begin."""
        self._loop = asyncio.get_running_loop()
        await self._register()
        self._subscription = self._database.changes.subscribe(self._wake_from_thread)
        self._unsubscribe_clock = self._engine.clock.subscribe(self._wake_from_thread)
        self._maintenance = Maintenance(
            self._engine.database, self._engine.clock, self._engine.rng, self._engine.namespace, self._engine.retention_us
        )
        for name, body in (
            ("claim", self._claim_once),
            ("report", self._report_once),
            ("callback", self._callback_once),
            ("watch", self._watch_once),
            ("progress", self._progress_once),
        ):
            self._tasks.append(asyncio.create_task(self._forever(name, body), name=f"action-retrier-{name}"))
        logger.info(
            "worker %s works on %s (namespace %s, concurrency %d)",
            self.id, self._database.location, self._engine.namespace, self._concurrency,
        )

    @property
    def id(self) -> str:
        """The id of this incarnation."""
        return self._claimant.id

    async def _register(self) -> None:
        registry = self._engine.registry
        self._claimant = Claimant(
            new_worker_id(),
            self._engine.namespace,
            json.dumps(sorted(registry.actions)),
            json.dumps(sorted(registry.mutations)),
            None if self._queues is None else json.dumps(self._queues),
        )
        loop = self._loop
        self._heartbeat = Heartbeat(
            self._database.leases,
            self._claimant.id,
            is_wanted=lambda: not loop.is_closed(),
            lost=self._doubt_lease,
        )
        claimant = self._claimant
        try:
            await self._database.write(lambda: register_worker(claimant, platform.node(), os.getpid()))
        except BaseException:
            self._heartbeat.stop()
            raise
        self._heartbeat.start()

    def _doubt_lease(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._lease_check.set)

    async def _register_again(self) -> None:
        """Others have taken this worker for dead: go on under a new id. Its attempts are fenced off."""
        logger.warning("worker %s was taken for dead; it goes on under a new id", self.id)
        self._heartbeat.stop()
        await self._register()
        self._stop_lost(set(self._executions))

    async def until_idle(self) -> None:
        """Return when nothing that this worker can run, or call back, is due or under way."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._idle_waiters.append(waiter)
        self._claim_wake.set()
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
        logger.info("worker %s stops: %d attempts are under way", self.id, len(self._executions))
        self._claim_wake.set()
        for execution in list(self._executions.values()):
            if not execution.begun and execution.task is not None:
                execution.task.cancel()
        timer = self._engine.clock.call_later(self._grace_us, self._hurried.set)
        await self._wait_until(lambda: not self._executions and not self._claiming, or_when=self._hurried)
        timer.cancel()
        for execution in list(self._executions.values()):
            self._stop_execution(execution, "shutting_down")
        await self._within(2 * _STOP_GRACE_S, self._wait_until(self._has_no_live_execution))
        await self._within(_FLUSH_GRACE_S, self._wait_until(lambda: not self._unsettled and not self._calling))
        await self._close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._subscription.close()
        self._unsubscribe_clock()
        self._threads.close()
        worker = self.id
        try:
            # What could not be reported in time is settled like a dead worker's: nothing is left behind.
            await self._database.write(lambda: recover_worker(worker, self._engine.rng), patience_s=_FLUSH_GRACE_S)
        except DatabaseUnavailable as error:
            # Others will notice the free lease and recover what is left.
            logger.warning("worker %s could not sign off: %s", worker, error.problem)
        await asyncio.to_thread(self._heartbeat.stop)
        for waiter in self._idle_waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._executions:
            logger.warning("worker %s leaves %d attempts behind that do not react", worker, len(self._executions))
        logger.info("worker %s has stopped", worker)

    @property
    def abandoned(self) -> int:
        """How many attempts still execute although they were told to stop."""
        return len(self._executions)

    async def _forever(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        """Repeat *body*; whatever it raises, the worker lives on."""
        backoff = 0.05
        while True:
            try:
                await body()
                backoff = 0.05
            except DatabaseUnavailable as error:
                logger.warning("%s: %s; trying again in %.1f s", name, error.problem, backoff)
            except Exception:  # the loop's boundary: our own bug must not end the worker
                logger.exception("%s: unexpected error; trying again in %.1f s", name, backoff)
            else:
                continue
            await asyncio.sleep(backoff * (0.5 + self._engine.rng.random()))
            backoff = min(backoff * 2, _LONGEST_BACKOFF_S)

    # Claim.

    async def _claim_once(self) -> None:
        """Claim what there is room for; when there is nothing, sleep until there may be."""
        self._claim_wake.clear()
        waiters, self._idle_waiters = self._idle_waiters, []
        try:
            if self._stopping:
                await self._claim_wake.wait()
                return
            free = self._concurrency - len(self._executions)
            if free > 0 and await self._claim(free):
                return
            self._subscription.active = True
            await self._sleep_until_due(free, waiters)
        finally:
            self._subscription.active = False
            self._idle_waiters += [waiter for waiter in waiters if not waiter.done()]

    async def _claim(self, free: int) -> bool:
        """Claim and begin; tell whether there may be more."""
        now_s = self._loop.time()
        allowance = self._suspects.allowance(now_s)
        claimant = self._claimant
        asked_us = self._engine.clock.monotonic_us()
        self._claiming = True
        try:
            claimed = await self._database.write(lambda: claim_runs(claimant, free, allowance))
        finally:
            self._claiming = False
            self._changed.set()
        if not claimed.registered:
            await self._register_again()
            return True
        for row in claimed.suspects:
            self._suspects.start((row["id"], row["attempt"]), row["losses"], self._loop.time())
            self._loop.call_later(PROBATION_S, self._claim_wake.set)
        for row in [*claimed.suspects, *claimed.runs]:
            self._begin(row, asked_us)
        return bool(claimed.runs or claimed.suspects)

    async def _sleep_until_due(self, free: int, waiters: list[asyncio.Future[None]]) -> None:
        claimant = self._claimant
        allowance = self._suspects.allowance(self._loop.time())
        due = await self._database.read(lambda: next_due(claimant, allowance))
        if due.callbacks_us is not None and due.callbacks_us <= 0:
            self._callbacks_are_due = True
            self._callback_wake.set()
        elif waiters:
            await self._maintenance.prune_if_due()
            if not self._is_busy and (due.work_us is None or due.work_us > 0):
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
        if due.work_us is not None and due.work_us <= 0 and free > 0:
            if await self._maintenance.expire():
                return
            # Somebody else has taken it, or it is of a kind that waits for its turn.
            await asyncio.sleep(0.002)
            return
        timers = [self._loop.call_later(POLL_S * (0.75 + self._engine.rng.random() / 4), self._claim_wake.set)]
        for wait_us in (due.work_us, due.callbacks_us):
            if wait_us is not None and 0 < wait_us < POLL_S * 2e6:
                timers.append(self._engine.clock.call_later(wait_us, self._claim_wake.set))  # type: ignore[arg-type]
        try:
            await self._claim_wake.wait()
        finally:
            for timer in timers:
                timer.cancel()

    @property
    def _is_busy(self) -> bool:
        return bool(self._executions or self._unsettled or self._calling)

    def _wake_from_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._claim_wake.set)

    # Run.

    def _begin(self, row: Row, claimed_at_us: int) -> None:
        action = self._engine.registry.actions[row["action"]]
        policy = policy_from_json(row["options"])
        execution = _Execution(row, action, policy, claimed_at_us)
        self._executions[execution.key] = execution
        task = self._loop.create_task(self._execute(execution))
        execution.task = task
        task.add_done_callback(lambda task: self._ended(execution, task))
        if self._stopping:
            task.cancel()

    async def _execute(self, execution: _Execution) -> Outcome:
        execution.begun = True
        row, policy = execution.row, execution.attempted.policy
        if policy.attempt_timeout_ms is not None:
            self._limit(execution, to_us(policy.attempt_timeout_ms), "timed_out")
        if row["deadline_in"] is not None:
            self._limit(execution, row["deadline_in"], "deadline_exceeded")
        is_async = execution.action.signature.is_async
        ctx: ActionCtx | SyncActionCtx | None = None
        if execution.action.signature.takes_ctx:
            mutations = self._engine.mutations
            ctx = (ActionCtx if is_async else SyncActionCtx)(
                run_id=row["id"],
                attempt=row["attempt"],
                max_attempts=row["attempt"] + policy.max_failures - row["failures"],
                database=self._database,
                signals=execution.signals,
                mutate=mutations.run if is_async else mutations.run_sync,
            )
        return await _attempt.execute(execution.action, row["args"], ctx, execution.signals, self._threads)

    def _limit(self, execution: _Execution, after_us: int, reason: StopReason) -> None:
        timer = self._engine.clock.call_later(after_us, lambda: self._stop_execution(execution, reason))
        execution.timers.append(timer)

    def _stop_execution(self, execution: _Execution, reason: StopReason) -> None:
        """Tell an attempt to stop; if it does not react, its outcome does not wait for it."""
        if execution.signals.stop_reason is not None:
            return
        execution.signals.stop_reason = reason
        if execution.action.signature.is_async and execution.task is not None:
            execution.task.cancel()
        execution.timers.append(self._loop.call_later(_STOP_GRACE_S, self._abandon, execution))

    def _abandon(self, execution: _Execution) -> None:
        if not execution.reported:
            execution.reported = True
            logger.warning(
                "run %s: attempt %d does not react to being stopped (%s); its slot stays taken until it ends",
                *execution.key, execution.signals.stop_reason,
            )
            self._report(execution, self._outcome_of_stop(execution))
            self._changed.set()

    def _ended(self, execution: _Execution, task: asyncio.Task[Outcome]) -> None:
        del self._executions[execution.key]
        self._suspects.end(execution.key)
        for timer in execution.timers:
            timer.cancel()
        if not execution.reported:
            execution.reported = True
            self._report(execution, self._judge(execution, task))
        self._claim_wake.set()
        self._changed.set()

    def _judge(self, execution: _Execution, task: asyncio.Task[Outcome]) -> Outcome | None:
        """Say how an attempt ended that may have been told to stop; None if nobody needs to know."""
        if not execution.begun:
            return NotBegun()
        if task.cancelled():
            return self._outcome_of_stop(execution)
        error = task.exception()
        outcome = task.result() if error is None else _attempt.outcome_of(execution.action, error)
        if execution.signals.stop_reason is None:
            return outcome
        if execution.signals.stop_reason == "shutting_down" and isinstance(outcome, Succeeded):
            return outcome
        return self._outcome_of_stop(execution)

    @staticmethod
    def _outcome_of_stop(execution: _Execution) -> Outcome | None:
        policy = execution.attempted.policy
        match execution.signals.stop_reason:
            case "timed_out":
                return TimedOut(policy.attempt_timeout_ms or 0)
            case "deadline_exceeded":
                return DeadlinePassed(policy.deadline_ms or 0)
            case "shutting_down":
                return WorkerStopped()
        return None  # canceled or lost: the run is not ours any more; or the program is ending

    # Report.

    def _report(self, execution: _Execution, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        row, attempted = execution.row, execution.attempted
        if attempted.deadline_in_us is not None:
            elapsed = self._engine.clock.monotonic_us() - execution.claimed_at_us
            attempted = Attempted(
                attempted.failures, attempted.losses, attempted.policy, attempted.deadline_in_us - elapsed
            )
        move = settle(attempted, outcome, self._engine.rng)
        report = Report(
            row["id"], row["attempt"], self.id, move, row["on_complete"], row["context"],
            execution.signals.progress, suspect=row["losses"] > 0,
        )
        self._unsettled += 1
        if report.calls_back:
            self._callback_reports.append(report)
            self._callback_wake.set()
        else:
            self._reports.append(report)
            self._report_wake.set()

    async def _report_once(self) -> None:
        """Write what has been collected while the last flush was running."""
        await self._report_wake.wait()
        self._report_wake.clear()
        reports, self._reports = self._reports, []
        if not reports:
            return
        try:
            await self._completion.write(reports)
        except BaseException:
            # Nothing of it was written: the same again, with what has come in meanwhile.
            self._reports = reports + self._reports
            self._report_wake.set()
            raise
        self._unsettled -= len(reports)
        self._changed.set()
        if self._idle_waiters or any(report.on_complete for report in reports):
            self._claim_wake.set()

    async def _callback_once(self) -> None:
        """End the runs that call back, then call the callbacks that are due by themselves."""
        await self._callback_wake.wait()
        self._callback_wake.clear()
        reports, self._callback_reports = self._callback_reports, []
        try:
            while reports:
                await self._completion.complete(reports[:_CALLBACK_BATCH])
                done, reports = reports[:_CALLBACK_BATCH], reports[_CALLBACK_BATCH:]
                self._unsettled -= len(done)
        except BaseException:
            self._callback_reports = reports + self._callback_reports
            self._callback_wake.set()
            raise
        self._changed.set()
        if self._callbacks_are_due and not self._stopping:
            self._callbacks_are_due = False
            await self._call_back()
        self._claim_wake.set()

    async def _call_back(self) -> None:
        claimant = self._claimant
        allowance = self._suspects.allowance(self._loop.time())
        self._calling += 1
        try:
            rows = await self._database.write(lambda: claim_callbacks(claimant, _CALLBACK_BATCH, allowance))
            while rows:
                row = rows[0]
                if self._stopping:
                    left = [row["id"] for row in rows]
                    await self._database.write(lambda: return_callbacks(left, claimant.id))
                    return
                key = ("callback", row["id"])
                if row["callback_losses"] > 0:
                    self._suspects.start(key, row["callback_losses"] + 1, self._loop.time())
                try:
                    await self._completion.call_back(row, claimant.id)
                finally:
                    self._suspects.end(key)
                rows = rows[1:]
        finally:
            self._calling -= 1
            self._changed.set()

    # Watch.

    async def _watch_once(self) -> None:
        """Learn which attempts are not ours any more, and look after workers that have died."""
        await self._within(_WATCH_S, self._lease_check.wait())
        if self._lease_check.is_set():
            self._lease_check.clear()
            await self._check_lease()
        if self._executions:
            keys = list(self._executions)
            lost = await self._database.read(lambda: lost_attempts(keys))
            for run_id, attempt, state in lost:
                execution = self._executions.get((run_id, attempt))
                if execution is not None and not execution.reported and not self._is_settling(execution):
                    self._stop_execution(execution, "canceled" if state in {None, "canceled"} else "lease_lost")
        if not self._stopping:
            if await self._maintenance.recover_dead(self.id):
                self._claim_wake.set()
            await self._maintenance.prune_if_due()
            await self._maintenance.warn_if_due()

    @staticmethod
    def _is_settling(execution: _Execution) -> bool:
        return execution.task is not None and execution.task.done()

    async def _check_lease(self) -> None:
        namespace = self._engine.namespace
        rows = await self._database.read(lambda: list_workers(namespace))
        if not any(row["id"] == self.id for row in rows):
            await self._register_again()

    def _stop_lost(self, keys: set[tuple[str, int]]) -> None:
        for key in keys:
            execution = self._executions.get(key)
            if execution is not None:
                self._stop_execution(execution, "lease_lost")

    async def _progress_once(self) -> None:
        await asyncio.sleep(_PROGRESS_S)
        told = []
        for execution in self._executions.values():
            progress, execution.signals.progress = execution.signals.progress, None
            if progress is not None:
                told.append((*execution.key, progress))
        if told:
            await self._database.write(lambda: store_progress(told))

    # Waiting.

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

    def _has_no_live_execution(self) -> bool:
        return all(execution.reported for execution in self._executions.values())

    @staticmethod
    async def _within(limit_s: float, what: Awaitable[Any]) -> None:
        """Wait for *what*, but no longer than *limit_s*."""
        task = asyncio.ensure_future(what)
        try:
            await asyncio.wait({task}, timeout=limit_s)
        finally:
            task.cancel()
