"""Options of a run, how they are checked, and how long a retry waits."""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, TypedDict

YEAR_MS = 365 * 24 * 3600 * 1000
"""The bound of a delay when the policy sets none."""

_FOREVER_MS = 1000 * YEAR_MS  # what is later than this would leave the calendar (year 9999)
_MAX_COUNT = 2**31 - 1
_NAME_LENGTH = 255
_NAMESPACE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_RETRY_AFTER_JITTER = 0.1


class PolicyOptions(TypedDict, total=False):
    """Options that a retrier, an action and a call may set, each field on its own."""

    initial_backoff_ms: float
    base: float
    max_failures: int
    max_backoff_ms: float | None
    jitter: float
    attempt_timeout_ms: float | None
    deadline_ms: float | None
    priority: int
    queue: str


class CallOptions(PolicyOptions, total=False):
    """Options of one call."""

    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    The options a run is started with, frozen into it.

    Attributes:
        initial_backoff_ms: Nominal delay before the first retry, from the end of the failed attempt.
        base: Factor from one retry to the next.
        max_failures: How many failures are retried: at most ``max_failures + 1`` executions.
        max_backoff_ms: Upper bound of the nominal delay; None means one year.
        jitter: Each delay is multiplied by a uniform random factor in [1 - jitter, 1 + jitter).
        attempt_timeout_ms: Time limit of one attempt; None means none.
        deadline_ms: Time limit of the run, from its first due time; None means none.
        priority: Larger starts sooner among due runs.
        queue: Which workers may take it.
    """

    initial_backoff_ms: float = 250
    base: float = 2
    max_failures: int = 4
    max_backoff_ms: float | None = None
    jitter: float = 0.5
    attempt_timeout_ms: float | None = None
    deadline_ms: float | None = None
    priority: int = 0
    queue: str = "default"

    def to_json(self) -> str:
        """Encode for the run's row."""
        return _encode(self)


@lru_cache(maxsize=1024)
def _encode(policy: RetryPolicy) -> str:
    return json.dumps({field: getattr(policy, field) for field in _CHECKS}, separators=(",", ":"))


def policy_from_json(text: str) -> RetryPolicy:
    """
    Decode what `RetryPolicy.to_json` encoded; fields of a later version are ignored.

    Where it cannot be read, which is a damaged row, nothing is retried: the run ends, and its neighbours go on.
    """
    found = _decode(text)
    return found if isinstance(found, RetryPolicy) else RetryPolicy(max_failures=0)


def damage_in_policy(text: str) -> str | None:
    """Return why a stored policy cannot be read; None if it can."""
    found = _decode(text)
    return None if isinstance(found, RetryPolicy) else found


@lru_cache(maxsize=1024)
def _decode(text: str) -> RetryPolicy | str:
    known = {field.name for field in dataclasses.fields(RetryPolicy)}
    try:
        return RetryPolicy(**{name: value for name, value in json.loads(text).items() if name in known})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


def check_options(options: Mapping[str, Any], *, where: str, extra: frozenset[str] = frozenset()) -> None:
    """
    Check the values of policy options.

    Args:
        options: Name to value; None means "not limited" where the option allows it.
        where: Who set them, for the message.
        extra: Further names that are allowed here, and checked by the caller.

    Raises:
        TypeError: An unknown name, or a value of the wrong type.
        ValueError: A value out of range.
    """
    for name, value in options.items():
        if name in extra:
            continue
        check = _CHECKS.get(name)
        if check is None:
            known = ", ".join(sorted({*_CHECKS, *extra}))
            hint = "; an action's own arguments go into a mapping, or a bind" if where == "run" else ""
            raise TypeError(f"{where}: unknown option {name!r}; the options are {known}{hint}")
        check(f"{where}: {name}", value)


def check_number(what: str, value: Any, *, at_most: float = math.inf, positive: bool = False) -> None:
    """Raise unless *value* is a finite number in range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number, not {value!r}")
    # A comparison, where `math.isfinite` would raise OverflowError for a large int.
    is_finite = abs(value) <= sys.float_info.max
    if not is_finite or value < 0 or value > at_most or (positive and value == 0):
        bounds = f"between 0 and {at_most:g}" if math.isfinite(at_most) else "finite and not negative"
        raise ValueError(f"{what} must be {'greater than 0 and finite' if positive else bounds}, not {value!r}")


def _check_optional_number(what: str, value: Any, *, positive: bool = False) -> None:
    if value is not None:
        check_number(what, value, positive=positive)


def _check_positive(what: str, value: Any) -> None:
    _check_optional_number(what, value, positive=True)


def check_count(what: str, value: Any, *, at_least: int = 0, at_most: int = _MAX_COUNT) -> None:
    """Raise unless *value* is a whole number in range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a whole number, not {value!r}")
    if not isinstance(value, int) or not at_least <= value <= at_most:
        raise ValueError(f"{what} must be a whole number between {at_least} and {at_most}, not {value!r}")


def _check_jitter(what: str, value: Any) -> None:
    check_number(what, value, at_most=1)


def _check_priority(what: str, value: Any) -> None:
    check_count(what, value, at_least=-_MAX_COUNT)


def check_name(what: str, value: Any) -> None:
    """Raise unless *value* is a usable name: 1 to 255 printable characters."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, not {value!r}")
    if not 1 <= len(value) <= _NAME_LENGTH or not value.isprintable():
        raise ValueError(f"{what} must have 1 to {_NAME_LENGTH} printable characters, not {value!r}")


def check_namespace(value: Any) -> None:
    """Raise unless *value* is a usable namespace."""
    if not isinstance(value, str) or _NAMESPACE.fullmatch(value) is None:
        raise ValueError(f"namespace must be a lower-case letter and up to 62 more of a-z, 0-9, _ and -, not {value!r}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "initial_backoff_ms": check_number,
    "base": check_number,
    "max_failures": check_count,
    "max_backoff_ms": _check_optional_number,
    "jitter": _check_jitter,
    "attempt_timeout_ms": _check_positive,
    "deadline_ms": _check_positive,
    "priority": _check_priority,
    "queue": check_name,
}


def nominal_delay_ms(policy: RetryPolicy, retry: int) -> float:
    """
    Return the delay before retry number *retry*, without jitter.

    ``min(max_backoff_ms, initial_backoff_ms * base ** (retry - 1))``: truncated exponential
    backoff, with one year as the bound if the policy sets none. Overflow is the bound.

    Args:
        policy: The run's policy.
        retry: From 1.

    Example:
        >>> [nominal_delay_ms(RetryPolicy(), k) for k in (1, 2, 3)]
        [250.0, 500.0, 1000.0]
    """
    bound = float(YEAR_MS if policy.max_backoff_ms is None else policy.max_backoff_ms)
    if not policy.initial_backoff_ms:
        return 0.0
    try:
        delay = float(policy.initial_backoff_ms) * float(policy.base) ** (retry - 1)
    except OverflowError:
        return bound
    return min(bound, delay)


def delay_before_retry_us(policy: RetryPolicy, retry: int, rng: Random) -> int:
    """
    Return the delay before retry number *retry*, with jitter, in microseconds.

    The factor is applied after the cap, so that clients at the cap still spread: each delay is
    uniform in [1 - jitter, 1 + jitter) times the nominal one ("equal jitter" generalised, see
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    factor = 1 - policy.jitter + 2 * policy.jitter * rng.random()
    return to_us(nominal_delay_ms(policy, retry) * factor)


def retry_after_us(delay_ms: float, rng: Random) -> int:
    """Return an explicit delay in microseconds, jittered upwards only, by at most 10 %."""
    return to_us(min(delay_ms, _FOREVER_MS) * (1 + _RETRY_AFTER_JITTER * rng.random()))


def to_us(delay_ms: float) -> int:
    """Return milliseconds as whole microseconds, bounded so that instants stay in the calendar."""
    return round(min(delay_ms, _FOREVER_MS) * 1000)
