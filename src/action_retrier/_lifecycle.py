"""
The state machine of a run: states, how an attempt ends, and what follows.

Pure. It knows no clock and no database: it answers in delays, and the database adds them to its
own now. "Scheduled" and "backing off" are views of `pending` and ``due_at``, not states, so that
nothing has to move rows between them.
"""

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import NamedTuple

from ._policy import RetryPolicy, delay_before_retry_us, retry_after_us


class State(StrEnum):
    """What a run's row says."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class Event(StrEnum):
    """What can happen to a run."""

    CLAIM = "claim"
    GIVE_BACK = "give back"
    SUCCEED = "succeed"
    FAIL = "fail"
    GIVE_UP = "give up"
    EXPIRE = "expire"
    CANCEL = "cancel"
    RETRY = "retry"
    CLEAN_UP = "clean up"


TRANSITIONS: dict[tuple[State, Event], State | None] = {
    (State.PENDING, Event.CLAIM): State.RUNNING,
    (State.PENDING, Event.EXPIRE): State.FAILED,
    (State.PENDING, Event.CANCEL): State.CANCELED,
    (State.PENDING, Event.RETRY): State.PENDING,
    (State.RUNNING, Event.GIVE_BACK): State.PENDING,
    (State.RUNNING, Event.SUCCEED): State.SUCCEEDED,
    (State.RUNNING, Event.FAIL): State.PENDING,
    (State.RUNNING, Event.GIVE_UP): State.FAILED,
    (State.RUNNING, Event.CANCEL): State.CANCELED,
    (State.FAILED, Event.RETRY): State.PENDING,
    (State.CANCELED, Event.RETRY): State.PENDING,
    (State.SUCCEEDED, Event.CLEAN_UP): None,
    (State.FAILED, Event.CLEAN_UP): None,
    (State.CANCELED, Event.CLEAN_UP): None,
}
"""Every legal move; None means that the row is gone. What is not here does not happen."""

COMPLETED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED})
"""States that are final until `retry`."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The action returned; *result* is its value as JSON text."""

    result: str


@dataclass(frozen=True, slots=True)
class Raised:
    """The action raised."""

    error_type: str
    error: str
    traceback: str | None = None
    retryable: bool = True
    retry_after_ms: float | None = None


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt outlasted ``attempt_timeout_ms``."""

    limit_ms: float


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The run's deadline passed while the attempt executed."""

    deadline_ms: float


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker died, or lost its lease, with the attempt."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    """The worker was told to stop and its grace time ran out."""


@dataclass(frozen=True, slots=True)
class NotBegun:
    """The attempt was claimed and given back before it began: it costs nothing."""


Outcome = Succeeded | Raised | TimedOut | DeadlinePassed | WorkerLost | WorkerStopped | NotBegun
"""How an attempt ended."""


class Attempted(NamedTuple):
    """
    What settling an attempt needs to know of its run.

    Attributes:
        failures: Before this attempt.
        losses: Attempts in a row, before this one, that died with their worker.
        deadline_in_us: Time left at the end of the attempt; None without a deadline.
    """

    failures: int
    losses: int
    policy: RetryPolicy
    deadline_in_us: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What the attempts table says of an attempt that did not succeed."""

    error_type: str
    error: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The run ends."""

    state: State
    failures: int
    result: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Reschedule:
    """The run waits for *delay_us* and is tried again. A delay of 0 keeps its due time."""

    delay_us: int
    failures: int
    losses: int
    failure: Failure | None = None


Move = Finish | Reschedule


def settle(run: Attempted, outcome: Outcome, rng: Random) -> Move:
    """
    Decide what follows from the end of an attempt: the only retry rule there is.

    Args:
        run: The run as its attempt left it.
        outcome: How the attempt ended; a worker's death is just another outcome.
        rng: Source of the jitter.
    """
    if isinstance(outcome, Succeeded):
        return Finish(State.SUCCEEDED, run.failures, result=outcome.result)
    if isinstance(outcome, NotBegun):
        return Reschedule(0, run.failures, run.losses)
    failures = run.failures + 1
    failure = describe(outcome)
    if isinstance(outcome, DeadlinePassed) or (isinstance(outcome, Raised) and not outcome.retryable):
        return Finish(State.FAILED, failures, failure=failure)
    if failures > run.policy.max_failures:
        return Finish(State.FAILED, failures, failure=failure)
    delay = _delay_us(run.policy, outcome, failures, rng)
    if run.deadline_in_us is not None and delay >= run.deadline_in_us:
        # The next attempt could not begin before the deadline: say now what would be said then.
        return Finish(State.FAILED, failures, failure=failure)
    losses = run.losses + 1 if isinstance(outcome, WorkerLost) else 0
    return Reschedule(delay, failures, losses, failure)


def _delay_us(policy: RetryPolicy, outcome: Outcome, failures: int, rng: Random) -> int:
    if isinstance(outcome, Raised) and outcome.retry_after_ms is not None:
        return retry_after_us(outcome.retry_after_ms, rng)
    return delay_before_retry_us(policy, failures, rng)


def describe(outcome: Outcome) -> Failure:
    """Say what went wrong, in the words that the run's result and history use."""
    match outcome:
        case Raised(error_type, error, traceback):
            return Failure(error_type, error, traceback)
        case TimedOut(limit_ms):
            return Failure("TimedOut", f"the attempt took longer than attempt_timeout_ms={limit_ms:g}")
        case DeadlinePassed(deadline_ms):
            return Failure("DeadlineExceeded", f"deadline_ms={deadline_ms:g} passed while the attempt was running")
        case WorkerLost(worker):
            return Failure("WorkerLost", f"worker {worker} died or lost its lease while the attempt was running")
        case WorkerStopped():
            return Failure("WorkerStopped", "the worker was stopped and the attempt did not end within the grace time")
    rest: Succeeded | NotBegun = outcome  # the type checker sees that every failure has its words above
    raise AssertionError(f"{rest!r} is not a failure")


def callback_delay_us(tries: int, rng: Random) -> int:
    """
    Return how long a callback waits before its next try, in microseconds.

    Exponential from 250 ms, doubling to at most one minute, with equal jitter. A callback is
    never given up, so its cap is far below that of actions.
    """
    return delay_before_retry_us(_CALLBACK_POLICY, max(1, tries), rng)


_CALLBACK_POLICY = RetryPolicy(initial_backoff_ms=250, base=2, max_backoff_ms=60_000, jitter=0.5)
