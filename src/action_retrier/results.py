"""
What callers get back: statuses, results, and everything known about a run.

All are frozen dataclasses made for ``match``. As JSON they have the camelCase shape of the
documentation, through `to_json`, pydantic and whatever is built on it::

    match await retrier.status(app, run_id):
        case Completed(Success(value)):
            ...
        case Completed(Failed(error)):
            ...
        case InProgress():
            ...
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

RunId = str
"""The id of a run: a UUIDv7 in canonical form. Plain strings are accepted everywhere."""

State = Literal["pending", "running", "succeeded", "failed", "canceled"]
CallbackState = Literal["none", "pending", "done"]


def _to_camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


class _InCamelCase:
    """What pydantic reads when it meets one of these; it is imported by then, and not by this module."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "alias_generator": _to_camel,
        "serialize_by_alias": True,
        "validate_by_alias": True,
        "validate_by_name": True,
        "ser_json_inf_nan": "constants",
    }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Refuse JSON without the ``type`` that tells these apart: each has a default only for Python."""
        schema = handler(source)
        if not hasattr(cls, "type"):
            return schema
        from pydantic_core import core_schema  # noqa: PLC0415 - it is there when this is called

        return core_schema.no_info_before_validator_function(_check_type_is_there, schema)

    def __post_init__(self) -> None:
        """The ``type`` of each class is its own: it tells them apart as JSON."""
        own = getattr(type(self), "type", None)
        if own is not None and getattr(self, "type", own) != own:
            raise ValueError(f"the type of a {type(self).__name__} is {own!r}")


def _check_type_is_there(given: Any) -> Any:
    if isinstance(given, Mapping) and "type" not in given:
        raise ValueError("there is no 'type'")
    return given


@dataclass(frozen=True)
class Success(_InCamelCase):
    """The action returned."""

    type: Literal["success"] = field(default="success", kw_only=True)
    return_value: Any = None


@dataclass(frozen=True)
class Failed(_InCamelCase):
    """
    The action gave up: too many failures, one that is not retried, or the deadline.

    Attributes:
        error: The last exception's message, or its class name if that is empty.
        error_type: ``module.QualName`` of its class (builtins without module), or one of
            ``TimedOut``, ``WorkerLost``, ``WorkerStopped``, ``InvalidReturnValue``, ``DeadlineExceeded``.
    """

    type: Literal["failed"] = field(default="failed", kw_only=True)
    error: str
    error_type: str = "Exception"


@dataclass(frozen=True)
class Canceled(_InCamelCase):
    """The run was canceled before it could end by itself."""

    type: Literal["canceled"] = field(default="canceled", kw_only=True)


RunResult = Success | Failed | Canceled
"""How a run ended."""


@dataclass(frozen=True)
class InProgress(_InCamelCase):
    """The run has not ended: it waits, backs off or executes."""

    type: Literal["inProgress"] = field(default="inProgress", kw_only=True)


@dataclass(frozen=True)
class Completed(_InCamelCase):
    """The run has ended, with `result`."""

    type: Literal["completed"] = field(default="completed", kw_only=True)
    result: RunResult


RunStatus = InProgress | Completed
"""Whether a run has ended, and how."""


@dataclass(frozen=True)
class Progress(_InCamelCase):
    """How far a running action says it is. `fraction` lies in [0, 1]."""

    fraction: float
    message: str = ""


@dataclass(frozen=True)
class Attempt(_InCamelCase):
    """
    One execution of the action.

    Attributes:
        number: From 1; never reused, not even by ``retry``.
        ended_at: None while it executes.
        worker: Id of the worker process that executed it.
        error_type: None for a success, and while it executes.
        delay_ms: The wait that followed it; None if no further attempt did.
    """

    number: int
    started_at: datetime
    ended_at: datetime | None = None
    worker: str | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    delay_ms: float | None = None


@dataclass(frozen=True)
class Callback(_InCamelCase):
    """
    The story of ``on_complete``.

    Attributes:
        name: The mutation's registered name.
        state: ``none`` until the run completes, then ``pending`` until its transaction has committed, then ``done``.
        tries: How often it has been tried apart from the completing transaction.
        last_error: What the last try raised; None if none did.
        last_traceback: Where it raised it.
    """

    name: str
    state: CallbackState
    tries: int = 0
    last_error: str | None = None
    last_traceback: str | None = None


@dataclass(frozen=True)
class Run(_InCamelCase):
    """
    Everything known about a run. Instants are aware datetimes in UTC.

    Attributes:
        due_at: Not before this instant; of a run that backs off, when its next attempt is due.
        started_at: When its first attempt began, since the run was started or retried.
        failures: Attempts that failed since then.
        attempts: All that are on record, oldest first.
        blocked_by: Name of the action or callback that no live worker knows, if that is what the run waits for.
        result: How it ended; None while in progress.
    """

    id: str
    action: str
    state: State
    queue: str
    priority: int
    args: Any
    options: Mapping[str, Any]
    created_at: datetime
    due_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    failures: int = 0
    attempts: tuple[Attempt, ...] = ()
    progress: Progress | None = None
    result: RunResult | None = None
    context: Any = None
    callback: Callback | None = None
    blocked_by: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Page(_InCamelCase):
    """One page of a listing, newest first. `cursor` is None on the last page."""

    runs: list[Run]
    cursor: str | None = None


def to_json(value: object) -> str:
    """
    Encode a status, result, run or page as JSON text, in camelCase.

    Example:
        >>> to_json(Completed(Success(7)))
        '{"result":{"returnValue":7,"type":"success"},"type":"completed"}'
    """
    text: str = _adapter(type(value)).dump_json(value).decode()
    return text


def from_json(text: str | bytes, kind: Any = RunStatus) -> Any:
    """
    Decode what `to_json` encoded.

    Args:
        text: JSON text.
        kind: The type it holds: ``RunStatus`` unless told, or any other of this module.

    Raises:
        ValueError: *text* is not the JSON form of *kind*.

    Example:
        >>> from_json('{"type": "completed", "result": {"type": "canceled"}}')
        Completed(result=Canceled(type='canceled'), type='completed')
    """
    return _adapter(kind).validate_json(text)


def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415 - at the first use, see `_InCamelCase`

    found = _adapters.get(kind)
    if found is None:
        found = _adapters[kind] = TypeAdapter(kind)
    return found


_adapters: dict[Any, Any] = {}
