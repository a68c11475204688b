"""Delays and options, whatever their values."""

import math
from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from action_retrier._lifecycle import (
    Attempted,
    DeadlinePassed,
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
    settle,
)
from action_retrier._policy import (
    YEAR_MS,
    RetryPolicy,
    check_options,
    delay_before_retry_us,
    nominal_delay_ms,
    policy_from_json,
    retry_after_us,
    to_us,
)

FOREVER_US = 1000 * YEAR_MS * 1000
durations = st.floats(0, allow_nan=False, allow_infinity=False) | st.integers(0, 10**15) | st.integers(0, 10**400)
finite = st.floats(0, allow_nan=False, allow_infinity=False) | st.integers(0, 10**300)
limits = st.none() | finite
shares = st.floats(0, 1)
retries = st.integers(1, 60) | st.integers(1, 2**31)
seeds = st.integers(0, 2**32)

policies = st.builds(
    RetryPolicy,
    initial_backoff_ms=finite,
    base=finite | st.floats(0, 4),
    max_failures=st.integers(0, 12),
    max_backoff_ms=limits,
    jitter=shares,
    attempt_timeout_ms=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
    deadline_ms=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
    priority=st.integers(-(2**31) + 1, 2**31 - 1),
    queue=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20),
)


@given(policies, retries)
def test_a_nominal_delay_is_between_nothing_and_the_bound(policy: RetryPolicy, retry: int) -> None:
    bound = YEAR_MS if policy.max_backoff_ms is None else policy.max_backoff_ms

    assert 0 <= nominal_delay_ms(policy, retry) <= float(bound)


@given(policies, st.integers(1, 200))
def test_with_a_base_of_one_or_more_delays_never_shrink(policy: RetryPolicy, retry: int) -> None:
    assume(policy.base >= 1)

    assert nominal_delay_ms(policy, retry) <= nominal_delay_ms(policy, retry + 1)


@given(policies, st.integers(1, 200))
def test_with_a_base_below_one_delays_never_grow(policy: RetryPolicy, retry: int) -> None:
    assume(policy.base <= 1)

    assert nominal_delay_ms(policy, retry) >= nominal_delay_ms(policy, retry + 1)


@given(st.integers(0, 10**6), st.integers(0, 8), st.integers(1, 12))
def test_small_delays_are_exactly_the_formula(initial: int, base: int, retry: int) -> None:
    policy = RetryPolicy(initial_backoff_ms=initial, base=base)

    assert nominal_delay_ms(policy, retry) == min(YEAR_MS, initial * base ** (retry - 1))


@given(policies, retries, seeds)
@example(RetryPolicy(initial_backoff_ms=1e300, base=1e300, max_backoff_ms=1e308, jitter=1), 2**31, 0)
def test_a_delay_lies_in_the_range_of_its_jitter(policy: RetryPolicy, retry: int, seed: int) -> None:
    """Uniform in [1 - jitter, 1 + jitter) times the nominal one, rounded, and never off the calendar."""
    nominal = nominal_delay_ms(policy, retry)

    delay = delay_before_retry_us(policy, retry, Random(seed))

    low, high = nominal * (1 - policy.jitter) * 1000, nominal * (1 + policy.jitter) * 1000
    assert isinstance(delay, int)
    assert min(low, FOREVER_US) * (1 - 1e-12) - 1 <= delay <= min(high, FOREVER_US) * (1 + 1e-12) + 1


@given(durations, seeds)
def test_an_explicit_delay_is_jittered_upwards_by_a_tenth_at_most(delay_ms: float, seed: int) -> None:
    delay = retry_after_us(delay_ms, Random(seed))

    assert isinstance(delay, int)
    assert min(delay_ms * 1000, FOREVER_US) * (1 - 1e-12) - 1 <= delay
    assert delay <= min(min(delay_ms, 10**30) * 1100 * (1 + 1e-12) + 1, FOREVER_US)


@given(durations)
def test_microseconds_are_whole_and_bounded(delay_ms: float) -> None:
    assert isinstance(to_us(delay_ms), int)
    assert 0 <= to_us(delay_ms) <= FOREVER_US


@given(policies)
def test_a_policy_comes_back_from_its_row_as_it_was(policy: RetryPolicy) -> None:
    assert policy_from_json(policy.to_json()) == policy


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=2),
)


@pytest.mark.parametrize("name", ["initial_backoff_ms", "base", "max_failures", "max_backoff_ms", "jitter", "priority"])
@given(value=anything)
def test_an_option_is_accepted_or_refused_by_name(name: str, value: Any) -> None:
    """ValueError or TypeError that names the option, or a value that leads to a delay."""
    try:
        check_options({name: value}, where="run")
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"run: {name} must")
        return
    policy = RetryPolicy(**{name: value})
    assert policy_from_json(policy.to_json()) == policy
    assert 0 <= delay_before_retry_us(policy, 7, Random(1)) <= FOREVER_US


failures = st.one_of(
    st.builds(Raised, st.just("E"), st.just("e"), retryable=st.booleans(), retry_after_ms=limits),
    st.builds(TimedOut, st.just(1.0)),
    st.builds(DeadlinePassed, st.just(1.0)),
    st.builds(WorkerLost, st.just("w")),
    st.builds(WorkerStopped),
)
outcomes = st.one_of(failures, st.builds(Succeeded, st.just("1")), st.builds(NotBegun))


@given(policies, st.lists(outcomes, max_size=40), seeds, st.none() | st.integers(-(10**9), 10**18))
def test_a_run_ends_after_at_most_all_its_retries(
    policy: RetryPolicy, ends: list[Outcome], seed: int, deadline_in_us: int | None
) -> None:
    """I8: whatever its attempts come to, at most max_failures + 1 that began, and then it has ended."""
    run = Attempted(0, 0, policy, deadline_in_us)
    began = 0
    rng = Random(seed)
    for outcome in ends:
        began += not isinstance(outcome, NotBegun)
        move = settle(run, outcome, rng)
        if isinstance(move, Finish):
            assert began <= policy.max_failures + 1
            assert (move.state == State.SUCCEEDED) == isinstance(outcome, Succeeded)
            assert (move.failure is None) == isinstance(outcome, Succeeded)
            return
        assert isinstance(move, Reschedule)
        assert began <= policy.max_failures
        assert move.failures == began
        assert 0 <= move.losses <= move.failures
        assert 0 <= move.delay_us <= FOREVER_US * 1.1
        assert deadline_in_us is None or isinstance(outcome, NotBegun) or move.delay_us < deadline_in_us
        run = Attempted(move.failures, move.losses, policy, deadline_in_us)
    assert math.isfinite(began)
