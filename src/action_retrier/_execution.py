"""The attempts that a worker executes: their beginning, their limits, and how they are stopped."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from . import _attempt
from ._clock import Clock, Timer, loop_time_s
from ._codec import describe_exception
from ._contexts import ActionCtx, AttemptSignals, StopReason, SyncActionCtx
from ._functions import Action
from ._lifecycle import Attempted, DeadlinePassed, NotBegun, Outcome, Raised, Succeeded, TimedOut, WorkerStopped
from ._mutations import Mutations
from ._ops.claims import damage_of
from ._policy import policy_from_json, to_us
from ._statements import Row
from ._suspects import Suspects
from ._threads import DaemonThreads
from .config import logger
from .drivers import Database

STOP_GRACE_S = 1.0
"""An attempt that has not reacted to being stopped after this is abandoned: its outcome does not wait for it."""

Key = tuple[str, int]
"""Run id and attempt number."""


class Execution:
    """One attempt that this worker executes."""

    __slots__ = ("action", "attempted", "begun", "claimed_at_us", "key", "reported", "row", "signals", "task", "timers")

    def __init__(self, row: Row, action: Action[Any, Any, Any], claimed_at_us: int) -> None:
        self.row = row
        self.key: Key = row["id"], row["attempt"]
        self.action = action
        self.attempted = Attempted(row["failures"], row["losses"], policy_from_json(row["options"]), row["deadline_in"])
        self.claimed_at_us = claimed_at_us
        self.signals = AttemptSignals()
        self.begun = False
        self.reported = False
        self.task: asyncio.Task[Outcome] | None = None
        self.timers: list[Timer] = []

    def judge(self, task: asyncio.Task[Outcome]) -> Outcome | None:
        """Say how the attempt ended, which may have been told to stop; None if nobody needs to know."""
        if not self.begun:
            return NotBegun()
        if task.cancelled():
            outcome: Outcome = _attempt.outcome_of(self.action, asyncio.CancelledError())
        else:
            error = task.exception()
            outcome = task.result() if error is None else _attempt.outcome_of(self.action, error)
        match self.signals.stop_reason:
            case None:
                return outcome
            case "shutting_down" if isinstance(outcome, Succeeded):
                return outcome  # it made it after all
        return self.outcome_of_stop()

    def outcome_of_stop(self) -> Outcome | None:
        """Say what being stopped means for the run; None if it is not this worker's any more."""
        policy = self.attempted.policy
        match self.signals.stop_reason:
            case "timed_out":
                return TimedOut(policy.attempt_timeout_ms or 0)
            case "deadline_exceeded":
                return DeadlinePassed(policy.deadline_ms or 0)
            case "shutting_down":
                return WorkerStopped()
        return None


class Executions:
    """All attempts that one worker executes."""

    def __init__(
        self,
        *,
        database: Database,
        mutations: Mutations,
        clock: Clock,
        concurrency: int,
        may_begin: Callable[[], bool],
        report: Callable[[Execution, Outcome], None],
        ended: Callable[[], None],
    ) -> None:
        """
        Begin with none.

        Args:
            may_begin: Tells whether what was claimed is ours still, for sure.
            report: Called with the outcome of each attempt that the database has to know.
            ended: Called whenever one has ended.
        """
        self.suspects = Suspects()
        self._database = database
        self._mutations = mutations
        self._clock = clock
        self.concurrency = concurrency
        self._may_begin = may_begin
        self._report = report
        self._announce_end = ended
        self._threads = DaemonThreads(concurrency, "action-retrier-action", around=database.in_user_thread)
        self._by_key: dict[Key, Execution] = {}
        self._stopping = False

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def free(self) -> int:
        """How many more can begin now."""
        return self.concurrency - len(self._by_key)

    @property
    def live(self) -> int:
        """How many have not been reported: without those that were abandoned."""
        return sum(not execution.reported for execution in self._by_key.values())

    def known(self) -> set[Key]:
        """Return all attempts, those among them that have been reported and not ended."""
        return set(self._by_key)

    def begun(self) -> set[Key]:
        """Return those of them that have begun."""
        return {key for key, execution in self._by_key.items() if execution.begun}

    def keys(self) -> list[Key]:
        """Return the attempts that are under way."""
        return [key for key, execution in self._by_key.items() if not execution.reported]

    def begin(self, row: Row, action: Action[Any, Any, Any], claimed_at_us: int) -> None:
        """Execute a claimed attempt, unless the worker stops: then it goes back, and has cost nothing."""
        execution = Execution(row, action, claimed_at_us)
        self._by_key[execution.key] = execution
        loop = asyncio.get_running_loop()
        if execution.attempted.losses:
            self.suspects.start(execution.key, execution.attempted.losses, loop.time())
        execution.task = loop.create_task(self._execute(execution))
        execution.task.add_done_callback(lambda task: self._ended(execution, task))
        if self._stopping:
            execution.task.cancel()

    async def _execute(self, execution: Execution) -> Outcome:
        if execution.signals.stop_reason is not None or not self._may_begin():
            return NotBegun()  # whoever was stopped since the claim may have an heir, which is executing it
        damage = damage_of(execution.row["options"])
        execution.begun = True
        if damage is not None:
            return damage
        if execution.attempted.losses:
            # Again: its probation counts from here, however long the event loop was busy.
            self.suspects.start(execution.key, execution.attempted.losses, loop_time_s(asyncio.get_running_loop()))
        row, policy = execution.row, execution.attempted.policy
        if policy.attempt_timeout_ms is not None:
            self._limit(execution, to_us(policy.attempt_timeout_ms), "timed_out")
        if row["deadline_in"] is not None:
            self._limit(execution, row["deadline_in"], "deadline_exceeded")
        ctx = self._context(execution) if execution.action.signature.takes_ctx else None
        return await _attempt.execute(execution.action, row["args"], ctx, self._threads)

    def _context(self, execution: Execution) -> ActionCtx | SyncActionCtx:
        row, is_async = execution.row, execution.action.signature.is_async
        return (ActionCtx if is_async else SyncActionCtx)(
            run_id=row["id"],
            attempt=row["attempt"],
            max_attempts=row["attempt"] + execution.attempted.policy.max_failures - row["failures"],
            database=self._database,
            signals=execution.signals,
            mutate=self._mutations.run if is_async else self._mutations.run_sync,
        )

    def _limit(self, execution: Execution, after_us: int, reason: StopReason) -> None:
        timer = self._clock.call_later(after_us, lambda: self._stop(execution, reason))
        execution.timers.append(timer)

    def stop_begun(self, reason: StopReason, keys: Iterable[Key] | None = None) -> None:
        """Tell attempts to stop: those that *keys* names, or all."""
        for key in list(self._by_key if keys is None else keys):
            execution = self._by_key.get(key)
            if execution is not None and not execution.reported:
                self._stop(execution, reason)

    def give_back_unbegun(self) -> None:
        """Begin nothing any more, and give back what has been claimed and not begun."""
        self._stopping = True
        for execution in list(self._by_key.values()):
            if not execution.begun and execution.task is not None:
                execution.task.cancel()

    def _stop(self, execution: Execution, reason: StopReason) -> None:
        if execution.signals.stop_reason is not None or (execution.task is not None and execution.task.done()):
            return
        execution.signals.stop_reason = reason
        if execution.action.signature.is_async and execution.task is not None:
            execution.task.cancel()
        loop = asyncio.get_running_loop()
        execution.timers.append(loop.call_later(STOP_GRACE_S, self._abandon, execution))

    def _abandon(self, execution: Execution) -> None:
        """Report without waiting for the end. The slot stays taken, and the attempt is fenced off."""
        execution.reported = True
        reason = execution.signals.stop_reason
        logger.warning("run %s: attempt %d does not react to being stopped (%s)", *execution.key, reason)
        outcome = execution.outcome_of_stop()
        if outcome is not None:
            self._report(execution, outcome)
        self._announce_end()

    def _ended(self, execution: Execution, task: asyncio.Task[Outcome]) -> None:
        del self._by_key[execution.key]
        self.suspects.end(execution.key)
        for timer in execution.timers:
            timer.cancel()
        if not execution.reported:
            execution.reported = True
            self._tell_outcome(execution, task)
        self._announce_end()

    def _tell_outcome(self, execution: Execution, task: asyncio.Task[Outcome]) -> None:
        try:
            outcome = execution.judge(task)
            if outcome is not None:
                self._report(execution, outcome)
        except Exception as error:  # noqa: BLE001 - our own bug: the run must end all the same
            logger.exception("unexpected error: run %s fails by it", execution.row["id"])
            self._report(execution, Raised(*describe_exception(error), retryable=False))

    def take_progress(self) -> list[tuple[str, int, tuple[float, str]]]:
        """Return, and forget, what attempts have said of their progress."""
        told = []
        for execution in self._by_key.values():
            progress, execution.signals.progress = execution.signals.progress, None
            if progress is not None:
                told.append((*execution.key, progress))
        return told

    def close(self) -> None:
        """Let idle threads end."""
        self._threads.close()
