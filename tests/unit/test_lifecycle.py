"""The state machine by itself: what follows from every end of an attempt."""

from collections.abc import Callable
from random import Random
from typing import Any, get_args

import pytest

from action_retrier._lifecycle import (
    COMPLETED,
    TRANSITIONS,
    Attempted,
    DeadlinePassed,
    Event,
    Failure,
    Finish,
    NotBegun,
    Outcome,
    Raised,
    Reschedule,
    State,
    Succeeded,
    TimedOut,
    WorkerLost,
    WorkerStopped,
    callback_delay_us,
    describe,
    settle,
)
from action_retrier._policy import RetryPolicy

POLICY = RetryPolicy(initial_backoff_ms=250, base=2, max_failures=4, jitter=0)
FAILURES: dict[str, Callable[[], Outcome]] = {
    "raised": lambda: Raised("ValueError", "no", "traceback"),
    "timed out": lambda: TimedOut(1500),
    "worker lost": lambda: WorkerLost("w-1"),
    "worker stopped": WorkerStopped,
}
retried = pytest.mark.parametrize("outcome", [make() for make in FAILURES.values()], ids=FAILURES)


def attempted(failures: int = 0, losses: int = 0, deadline_in_us: int | None = None, **policy: Any) -> Attempted:
    options = {"initial_backoff_ms": 250, "base": 2, "max_failures": 4, "jitter": 0} | policy
    return Attempted(failures, losses, RetryPolicy(**options), deadline_in_us)


def test_the_table_knows_every_state_and_event() -> None:
    """Every state can be left or is final until retry; every event happens somewhere."""
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert {state for state in TRANSITIONS.values() if state} == set(State)


def test_completed_states_are_left_by_retry_and_cleanup_only() -> None:
    """I3, I5: final until retry, and a success is final for good."""
    for (state, event), after in TRANSITIONS.items():
        if state in COMPLETED:
            assert event in {Event.RETRY, Event.CLEAN_UP}
            assert after in {State.PENDING, None}
    assert (State.SUCCEEDED, Event.RETRY) not in TRANSITIONS
    assert {state for state in State if (state, Event.CLEAN_UP) in TRANSITIONS} == COMPLETED


def test_only_a_claim_leads_to_running() -> None:
    """I2: one way in, which counts the attempt."""
    ways = {key for key, after in TRANSITIONS.items() if after == State.RUNNING}

    assert ways == {(State.PENDING, Event.CLAIM)}


@pytest.mark.parametrize("losses", [0, 3])
@pytest.mark.parametrize("failures", [0, 4])
def test_a_success_ends_the_run_whatever_came_before(failures: int, losses: int) -> None:
    assert settle(attempted(failures, losses, -5), Succeeded("1"), Random(1)) == Finish(
        State.SUCCEEDED, failures, result="1"
    )


@pytest.mark.parametrize("deadline_in_us", [None, 10, -10])
def test_an_attempt_that_did_not_begin_costs_nothing(deadline_in_us: int | None) -> None:
    """I8: given back free, and still a suspect if it was one."""
    run = attempted(4, 2, deadline_in_us)

    assert settle(run, NotBegun(), Random(1)) == Reschedule(0, failures=4, losses=2)


@retried
@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_a_failure_is_retried_while_there_are_retries(outcome: Outcome, failures: int) -> None:
    """I8: with the nominal delay of the retry that it leads to."""
    move = settle(attempted(failures), outcome, Random(1))

    assert isinstance(move, Reschedule)
    assert (move.delay_us, move.failures) == (250_000 * 2**failures, failures + 1)
    assert move.failure == describe(outcome)


@retried
@pytest.mark.parametrize(("failures", "limit"), [(4, 4), (0, 0), (1, 1), (7, 4)])
def test_the_failure_after_the_last_retry_ends_the_run(outcome: Outcome, failures: int, limit: int) -> None:
    """I8: max_failures + 1 executions."""
    move = settle(attempted(failures, max_failures=limit), outcome, Random(1))

    assert move == Finish(State.FAILED, failures + 1, failure=describe(outcome))


@pytest.mark.parametrize(
    "outcome", [Raised("E", "e", retryable=False), DeadlinePassed(100)], ids=["raised", "deadline"]
)
def test_some_failures_are_final_at_once(outcome: Outcome) -> None:
    assert settle(attempted(), outcome, Random(1)) == Finish(State.FAILED, 1, failure=describe(outcome))


@retried
@pytest.mark.parametrize(
    ("deadline_in_us", "ends"), [(250_001, False), (250_000, True), (1, True), (0, True), (-1, True)]
)
def test_a_retry_that_would_not_make_the_deadline_is_not_waited_for(
    outcome: Outcome, deadline_in_us: int, *, ends: bool
) -> None:
    """An attempt begins strictly before the deadline."""
    move = settle(attempted(deadline_in_us=deadline_in_us), outcome, Random(1))

    assert isinstance(move, Finish) is ends


@pytest.mark.parametrize(
    ("outcome", "losses"),
    [
        (WorkerLost("w"), 3),
        (Raised("E", "e"), 0),
        (TimedOut(1), 0),
        (WorkerStopped(), 0),
    ],
    ids=["lost", "raised", "timed out", "stopped"],
)
def test_losses_are_counted_in_a_row(outcome: Outcome, losses: int) -> None:
    move = settle(attempted(2, 2), outcome, Random(1))

    assert isinstance(move, Reschedule)
    assert move.losses == losses


@pytest.mark.parametrize("delay_ms", [0, 1.5, 60_000, 10**12])
def test_an_action_may_set_its_delay(delay_ms: float) -> None:
    """Not capped by max_backoff_ms; jittered upwards only, by at most a tenth."""
    outcome = Raised("E", "e", retry_after_ms=delay_ms)
    for seed in range(20):
        move = settle(attempted(max_backoff_ms=1), outcome, Random(seed))
        assert isinstance(move, Reschedule)
        assert delay_ms * 1000 <= move.delay_us <= delay_ms * 1100 + 1


@pytest.mark.parametrize("delay_ms", [1e300, 1.7e308, 10**400], ids=["1e300", "1.7e308", "10**400"])
def test_a_delay_beyond_all_bounds_is_the_bound(delay_ms: float) -> None:
    """Overflow is the bound, never an exception: it would leave the run without an outcome."""
    move = settle(attempted(), Raised("E", "e", retry_after_ms=delay_ms), Random(1))

    assert isinstance(move, Reschedule)
    assert move.delay_us == 1000 * 365 * 86_400_000_000


def test_a_retry_after_does_not_outlive_the_deadline() -> None:
    move = settle(attempted(deadline_in_us=1_000_000), Raised("E", "e", retry_after_ms=1000), Random(1))

    assert isinstance(move, Finish)


def test_the_jitter_comes_from_the_generator_that_is_given() -> None:
    """Pure: the same generator, the same move."""
    run = attempted(jitter=0.5)

    assert settle(run, WorkerLost("w"), Random(7)) == settle(run, WorkerLost("w"), Random(7))
    assert settle(run, WorkerLost("w"), Random(7)) != settle(run, WorkerLost("w"), Random(8))


@pytest.mark.parametrize(
    ("outcome", "error_type", "text"),
    [
        (Raised("m.E", "no", "tb"), "m.E", "no"),
        (TimedOut(1500.5), "TimedOut", "attempt_timeout_ms=1500.5"),
        (DeadlinePassed(60_000), "DeadlineExceeded", "deadline_ms=60000"),
        (WorkerLost("w-1"), "WorkerLost", "worker w-1"),
        (WorkerStopped(), "WorkerStopped", "grace time"),
    ],
)
def test_a_failure_says_what_went_wrong(outcome: Outcome, error_type: str, text: str) -> None:
    failure = describe(outcome)

    assert failure.error_type == error_type
    assert text in failure.error
    assert failure.traceback == ("tb" if isinstance(outcome, Raised) else None)


@pytest.mark.parametrize("outcome", [Succeeded("1"), NotBegun()])
def test_what_is_no_failure_is_not_described_as_one(outcome: Outcome) -> None:
    with pytest.raises(AssertionError):
        describe(outcome)


def test_every_outcome_is_settled() -> None:
    """`settle` is total."""
    values: dict[type, tuple[Any, ...]] = {
        Succeeded: ("1",),
        Raised: ("E", "e"),
        TimedOut: (1,),
        DeadlinePassed: (1,),
        WorkerLost: ("w",),
        WorkerStopped: (),
        NotBegun: (),
    }
    assert set(values) == set(get_args(Outcome))
    for kind, arguments in values.items():
        assert isinstance(settle(attempted(), kind(*arguments), Random(1)), Finish | Reschedule)


def test_moves_name_states_that_the_table_has() -> None:
    """A finish is one of the two ends that a report can bring; cancel has its own way."""
    ends = {TRANSITIONS[State.RUNNING, event] for event in (Event.SUCCEED, Event.GIVE_UP)}
    outcomes: list[Outcome] = [Succeeded("1"), Raised("E", "e", retryable=False), DeadlinePassed(1)]
    moves = [settle(attempted(), outcome, Random(1)) for outcome in outcomes]

    assert {move.state for move in moves if isinstance(move, Finish)} == ends


@pytest.mark.parametrize(("tries", "nominal_ms"), [(0, 250), (1, 250), (2, 500), (9, 60_000), (10**6, 60_000)])
def test_callbacks_back_off_to_a_minute(tries: int, nominal_ms: int) -> None:
    """I4: a callback is never given up, so its wait has a cap far below that of actions."""
    for seed in range(20):
        assert 0.5 * nominal_ms <= callback_delay_us(tries, Random(seed)) / 1000 < 1.5 * nominal_ms


def test_failures_compare_by_what_they_say() -> None:
    assert Failure("E", "e") == Failure("E", "e", None)
