"""
Everything this library raises on purpose.

    RetrierError
    ├── RunNotFound           no run has this id
    ├── RunInProgress         the run, or its callback, has not ended yet
    ├── RunSucceeded          a run that succeeded is not retried
    ├── InvalidArguments      arguments the function cannot be called with
    ├── IdempotencyConflict   the key belongs to a run with other arguments
    ├── UnknownFunction       a function or name that the app does not know
    ├── PayloadTooLarge       more JSON than a run may carry
    ├── InvalidContext        ``ctx`` cannot hold the transaction of this call
    ├── SchemaMismatch        the tables are of another version
    └── DatabaseUnavailable   the database did not do what it was asked to

Actions steer their own retries by raising `RetryAfter` or `NonRetryableError`; these are not
errors of this library and stand outside its tree.
"""

from typing import Any, Self


class RetrierError(Exception):
    """Root of the errors that this library raises."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """What was wrong and what to do."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and attributes: subclasses build their message from keywords."""
        return _restore, (type(self), self.args, dict(self.__dict__))


def _restore(cls: type[RetrierError], args: tuple[Any, ...], attributes: dict[str, Any]) -> RetrierError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class RunNotFound(RetrierError):
    """No run has this id, or it has been cleaned up."""

    def __init__(self, *, run_id: object) -> None:
        self.run_id = run_id
        super().__init__(
            f"no run has the id {run_id!r}: it was never started in this database and namespace, "
            "its transaction was rolled back, or it has been cleaned up"
        )


class RunInProgress(RetrierError):
    """The run, or the callback that its completion owes, has not ended yet."""

    def __init__(self, *, run_id: str, reason: str, remedy: str) -> None:
        self.run_id = run_id
        self.reason = reason
        super().__init__(f"run {run_id} {reason}: {remedy}")


class RunSucceeded(RetrierError):
    """A run that succeeded is final."""

    def __init__(self, *, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"run {run_id} has succeeded, and a success is final: start a new run instead of retrying it")


class InvalidArguments(RetrierError):
    """The function cannot be called with these arguments, or JSON cannot carry them."""

    def __init__(self, *, function: str, problem: str) -> None:
        self.function = function
        self.problem = problem
        super().__init__(f"invalid arguments for {function!r}: {problem}")


class IdempotencyConflict(RetrierError):
    """The idempotency key belongs to a run that was started with other arguments."""

    def __init__(self, *, action: str, idempotency_key: str, run_id: str) -> None:
        self.action = action
        self.idempotency_key = idempotency_key
        self.run_id = run_id
        super().__init__(
            f"idempotency key {idempotency_key!r} of action {action!r} belongs to run {run_id}, which was started "
            "with other arguments: use another key, or the same arguments"
        )


class UnknownFunction(RetrierError):
    """A function, or a name, that is not registered with this app."""

    def __init__(self, *, name: str, remedy: str) -> None:
        self.name = name
        super().__init__(f"{name!r} is not registered with this app: {remedy}")


class PayloadTooLarge(RetrierError):
    """A payload exceeds what one run may carry."""

    def __init__(self, *, what: str, size: int, limit: int) -> None:
        self.what = what
        self.size = size
        self.limit = limit
        super().__init__(
            f"{what}: {size:,} bytes of JSON, and the limit is {limit:,}: store the data elsewhere and pass a reference"
        )


class InvalidContext(RetrierError):
    """``ctx`` cannot hold the transaction in which this call should happen."""

    def __init__(self, *, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}")


class SchemaMismatch(RetrierError):
    """The tables in the database are of another version than this code."""

    def __init__(self, *, found: int, needed: int, remedy: str) -> None:
        self.found = found
        self.needed = needed
        have = f"version {found}" if found else "missing"
        super().__init__(f"the schema is {have} and this code needs version {needed}: {remedy}")


class DatabaseUnavailable(RetrierError):
    """The database could not be reached, was locked, or refused to write."""

    def __init__(self, *, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}: {remedy}")


class RetryAfter(Exception):
    """
    Raise in an action: this attempt failed, and the next is due after *delay_ms*.

    The delay replaces the policy's own, is not capped by ``max_backoff_ms`` and is jittered
    upwards only, by at most 10 %. With a ``__cause__`` (``raise RetryAfter(...) from error``)
    the cause is what the run reports.

    Args:
        delay_ms: Milliseconds, finite and not negative.
        message: The error text of the attempt.

    Raises:
        ValueError: *delay_ms* is negative, NaN or infinite.

    Example:
        >>> RetryAfter(1500, "slow down").delay_ms
        1500
    """

    def __init__(self, delay_ms: float, message: str = "") -> None:
        # Checked where it is raised, so that the traceback points at the action's own line.
        if isinstance(delay_ms, bool) or not isinstance(delay_ms, int | float):
            raise TypeError(f"RetryAfter: delay_ms must be a number of milliseconds, not {delay_ms!r}")
        if not 0 <= delay_ms < float("inf"):
            raise ValueError(f"RetryAfter: delay_ms must be finite and not negative, not {delay_ms!r}")
        super().__init__(message)
        self.delay_ms = delay_ms

    def __reduce__(self) -> tuple[type[Self], tuple[float, str]]:
        """Pickle with the delay, which is not among ``args``."""
        return type(self), (self.delay_ms, str(self.args[0]))


class NonRetryableError(Exception):
    """
    Raise in an action: the run fails now, whatever its policy.

    With a ``__cause__`` (``raise NonRetryableError from error``) the cause is what the run reports.
    """
