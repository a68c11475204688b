"""Options: what is accepted, what is refused and how, and what delays they lead to."""

import json
import math
from random import Random
from typing import Any

import pytest

from action_retrier._policy import (
    YEAR_MS,
    RetryPolicy,
    check_count,
    check_name,
    check_number,
    check_options,
    delay_before_retry_us,
    nominal_delay_ms,
    policy_from_json,
    retry_after_us,
    to_us,
)

NUMBERS = ["initial_backoff_ms", "base", "max_backoff_ms", "jitter", "attempt_timeout_ms", "deadline_ms"]
LIMITS = ["max_backoff_ms", "attempt_timeout_ms", "deadline_ms"]
COUNTS = ["max_failures", "priority"]


def check(**options: Any) -> None:
    check_options(options, where="run")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial_backoff_ms", 0),
        ("initial_backoff_ms", 0.25),
        ("initial_backoff_ms", 1e308),
        ("base", 0),
        ("base", 1),
        ("base", 1.5),
        ("max_failures", 0),
        ("max_failures", 2**31 - 1),
        ("max_backoff_ms", 0),
        ("max_backoff_ms", None),
        ("jitter", 0),
        ("jitter", 1),
        ("jitter", 0.3),
        ("attempt_timeout_ms", 0.001),
        ("attempt_timeout_ms", None),
        ("deadline_ms", 1),
        ("deadline_ms", None),
        ("priority", -(2**31) + 1),
        ("priority", 2**31 - 1),
        ("queue", "default"),
        ("queue", "q" * 255),
        ("queue", "with space, ünïcode 🎉"),
    ],
)
def test_what_makes_sense_is_accepted(name: str, value: Any) -> None:
    check(**{name: value})


@pytest.mark.parametrize("value", ["1", None, True, [1], {}, 1j, Ellipsis], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_must_be_one(name: str, value: Any) -> None:
    """None is a number of no option that has no "unlimited"."""
    if value is None and name in LIMITS:
        return
    with pytest.raises(TypeError, match=f"run: {name} must be a number"):
        check(**{name: value})


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_must_be_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"run: {name} must be .*, not {value!r}"):
        check(**{name: value})


@pytest.mark.parametrize("name", [*NUMBERS, *COUNTS])
@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["10**400", "-10**400"])
def test_a_number_beyond_all_bounds_is_a_value_error(name: str, value: int) -> None:
    """ValueError or TypeError, whatever the number: an OverflowError would say nothing of the option."""
    with pytest.raises(ValueError, match=f"run: {name} must be"):
        check(**{name: value})


@pytest.mark.parametrize("name", ["attempt_timeout_ms", "deadline_ms"])
def test_a_time_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        check(**{name: 0})


def test_the_jitter_is_a_share() -> None:
    with pytest.raises(ValueError, match="jitter must be between 0 and 1"):
        check(jitter=1.001)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0.5, 2.0, 1e3, math.nan, math.inf], ids=repr)
def test_a_count_must_be_whole(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"run: {name} must be a whole number"):
        check(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", ["1", None, True, False, [1]], ids=repr)
def test_a_count_must_be_a_number(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"run: {name} must be a whole number"):
        check(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("max_failures", -1), ("max_failures", 2**31), ("priority", 2**31)])
def test_a_count_has_bounds(name: str, value: int) -> None:
    """Both databases store what is accepted."""
    with pytest.raises(ValueError, match=f"run: {name} must be a whole number between"):
        check(**{name: value})


@pytest.mark.parametrize("value", ["", "q" * 256, "a\nb", "a\0", "\ud800", "\u200b"], ids=ascii)
def test_a_queue_has_a_name(value: str) -> None:
    with pytest.raises(ValueError, match="run: queue must have 1 to 255 printable characters"):
        check(queue=value)


@pytest.mark.parametrize("value", [None, 1, b"q", ["q"]], ids=repr)
def test_a_queues_name_is_a_string(value: Any) -> None:
    with pytest.raises(TypeError, match="run: queue must be a string"):
        check(queue=value)


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    with pytest.raises(TypeError, match="run: unknown option 'max_retries'; the options are .*max_failures"):
        check(max_retries=3)


def test_extra_names_are_left_to_the_caller() -> None:
    check_options({"idempotency_key": Ellipsis}, where="run", extra=frozenset({"idempotency_key"}))
    with pytest.raises(TypeError, match="idempotency_key"):
        check(idempotency_key="k")


@pytest.mark.parametrize(
    ("check_one", "value", "bounds", "error"),
    [
        (check_number, 3, {"at_most": 2}, ValueError),
        (check_number, 0, {"positive": True}, ValueError),
        (check_count, 0, {"at_least": 1}, ValueError),
        (check_count, 5, {"at_most": 4}, ValueError),
        (check_name, "", {}, ValueError),
        (check_name, 5, {}, TypeError),
    ],
)
def test_a_check_names_what_it_checks(check_one: Any, value: Any, bounds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="^what must"):
        check_one("what", value, **bounds)


# Stored policies.


def test_a_policy_survives_its_row() -> None:
    policy = RetryPolicy(1.5, 3, 7, 1e300, 0.25, 0.001, 12, -4, "q é")

    assert policy_from_json(policy.to_json()) == policy


def test_fields_of_a_later_version_are_ignored() -> None:
    """Yesterday's workers run what today's callers have started."""
    stored = json.loads(RetryPolicy(max_failures=2).to_json()) | {"new": 1}

    assert policy_from_json(json.dumps(stored)) == RetryPolicy(max_failures=2)


def test_fields_that_are_missing_have_their_defaults() -> None:
    """Today's workers run what was stored before a field came to be."""
    assert policy_from_json('{"max_failures":2}') == RetryPolicy(max_failures=2)


def test_the_defaults_are_the_documented_ones() -> None:
    assert RetryPolicy() == RetryPolicy(250, 2, 4, None, 0.5, None, None, 0, "default")


# Delays.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [250, 500, 1000, 2000]),
        ({"base": 1}, [250, 250, 250]),
        ({"base": 0}, [250, 0, 0]),
        ({"base": 0.5}, [250, 125, 62.5]),
        ({"base": 1.5}, [250, 375, 562.5]),
        ({"initial_backoff_ms": 0}, [0, 0, 0]),
        ({"max_backoff_ms": 600}, [250, 500, 600, 600]),
        ({"max_backoff_ms": 0}, [0, 0]),
        ({"max_backoff_ms": 100}, [100, 100]),
    ],
)
def test_the_nominal_delay_is_the_documented_formula(options: dict[str, Any], expected: list[float]) -> None:
    """min(max_backoff_ms, initial_backoff_ms * base ** (k - 1)), k from 1."""
    policy = RetryPolicy(**options)

    assert [nominal_delay_ms(policy, retry) for retry in range(1, len(expected) + 1)] == expected


@pytest.mark.parametrize("retry", [64, 1025, 10_000, 2**31])
@pytest.mark.parametrize(("limit", "bound"), [(None, YEAR_MS), (60_000, 60_000), (1e300, 1e300)])
@pytest.mark.parametrize(("initial", "base"), [(250, 2), (1e308, 1e308), (1e-300, 1e10)])
def test_overflow_is_the_bound(retry: int, limit: float | None, bound: float, initial: float, base: float) -> None:
    """Never an exception: a run must not be lost to its own patience."""
    policy = RetryPolicy(initial_backoff_ms=initial, base=base, max_backoff_ms=limit)

    delay = nominal_delay_ms(policy, retry)

    assert 0 <= delay <= bound
    if initial * 2.0 ** min(retry, 900) > bound:
        assert delay == bound
    assert 0 <= delay_before_retry_us(policy, retry, Random(1)) <= 1000 * YEAR_MS * 1000


def test_without_a_bound_a_delay_is_a_year_at_most() -> None:
    assert nominal_delay_ms(RetryPolicy(), 100) == YEAR_MS
    assert nominal_delay_ms(RetryPolicy(initial_backoff_ms=2 * YEAR_MS), 1) == YEAR_MS


def test_the_jitter_is_applied_after_the_cap() -> None:
    """Clients at the cap still spread: it is no upper bound of the real delay."""
    policy = RetryPolicy(max_backoff_ms=1000, jitter=0.5)
    rng = Random(3)
    delays = [delay_before_retry_us(policy, 50, rng) for _ in range(1000)]

    assert min(delays) < 600_000
    assert max(delays) > 1_400_000
    assert all(500_000 <= delay < 1_500_000 for delay in delays)


def test_without_jitter_a_delay_is_exact() -> None:
    assert delay_before_retry_us(RetryPolicy(jitter=0), 3, Random(1)) == 1_000_000


@pytest.mark.parametrize("delay_ms", [0, 0.25, 1000, 1e12])
def test_an_explicit_delay_is_jittered_upwards_only(delay_ms: float) -> None:
    for seed in range(100):
        assert delay_ms * 1000 <= retry_after_us(delay_ms, Random(seed)) <= delay_ms * 1100 + 1


@pytest.mark.parametrize(
    ("delay_ms", "expected"), [(0, 0), (0.0004, 0), (0.001, 1), (1.5, 1500), (1e300, 1000 * YEAR_MS * 1000)]
)
def test_microseconds_are_whole_and_stay_in_the_calendar(delay_ms: float, expected: int) -> None:
    assert to_us(delay_ms) == expected
    assert isinstance(to_us(delay_ms), int)
