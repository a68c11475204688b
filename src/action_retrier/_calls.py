"""What both colours of retrier share: checking a call, and finding the transaction it belongs to."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar, Unpack, get_args

from ._functions import Action, Bound, Mutation, encode_context, unbind
from ._ids import is_run_id, new_run_id
from ._lifecycle import State
from ._ops import control, reads
from ._ops.starts import Start, start_runs
from ._policy import CallOptions, RetryPolicy, check_count, check_name, check_number, check_options, to_us
from ._signatures import encode_by_name
from ._statements import Op, Row, Rows
from ._targets import Targets
from ._waiting import Waiting
from ._worker import Engine
from .config import logger
from .drivers import Database
from .errors import RunNotFound
from .results import CallbackState, Page, Run, RunStatus

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_SUSPECTED_BELOW = 10**11  # as milliseconds, that is 1973
_LATEST_US = 253_402_300_799_999_999  # the end of the year 9999
_MOST_RUNS = 1000
_CALL_ONLY = frozenset({"idempotency_key"})
_KEY_LENGTH = 255


class Call:
    """
    One call of `ActionRetrier.run`, for ``run_many``: takes everything that it takes after ``ctx``.

    Example:
        >>> Call("billing:charge", {"order_id": 7}, max_failures=2)
        Call('billing:charge')
    """

    __slots__ = ("action", "args", "context", "on_complete", "options")

    def __init__(
        self,
        action: "Action[..., ..., Any] | Bound | str",
        args: Mapping[str, Any] | None = None,
        *,
        on_complete: "Mutation[..., Any] | str | None" = None,
        context: object = None,
        **options: Unpack[CallOptions],
    ) -> None:
        self.action = action
        self.args = args
        self.on_complete = on_complete
        self.context = context
        self.options: Mapping[str, Any] = dict(options)

    def __repr__(self) -> str:
        return f"Call({getattr(self.action, 'name', self.action)!r})"


class _App(Protocol):
    """What an App is asked for each time: the command line, or a test, may have it work elsewhere."""

    _engine: Engine


class Calls:
    """Turns what a caller passes into operations, and finds where they run."""

    def __init__(self, app: _App, options: Mapping[str, Any]) -> None:
        check_options(options, where="ActionRetrier")
        self._app = app
        self._options = dict(options)
        self._default_policies: dict[str | None, RetryPolicy] = {}

    @property
    def _engine(self) -> Engine:
        return self._app._engine  # noqa: SLF001 - one house

    @property
    def _namespace(self) -> str:
        return self._engine.namespace

    @property
    def database(self) -> Database:
        """The app's."""
        return self._engine.database

    @property
    def targets(self) -> Targets:
        """What finds the transactions of calls."""
        return Targets(self._app, self.database)

    # Starting.

    def start(self, call: Call, *, at_us: int | None = None, delay_us: int = 0) -> Start:
        """Check one call and encode it; due at *at_us*, else after *delay_us*."""
        check_options(call.options, where="run", extra=_CALL_ONLY)
        given, args = unbind(call.action, call.args)
        registry = self._engine.registry
        name, action = registry.find_action(given)
        encoded = encode_by_name(name, args) if action is None else action.signature.encode_arguments(args)
        on_complete, mutation = "", None
        if call.on_complete is not None:
            on_complete, mutation = registry.find_callback(call.on_complete)
        return Start(
            id=new_run_id(self._engine.clock),
            action=name,
            args=encoded,
            policy=self._policy(action, call.options),
            on_complete=on_complete,
            context=encode_context(mutation, on_complete or name, call.context, encoded),
            at_us=at_us,
            delay_us=delay_us,
            aliases=() if action is None else action.aliases,
            idempotency_key=_check_key(call.options.get("idempotency_key")),
        )

    def start_at(self, when: datetime | float, call: Call) -> Start:
        """Check one call that is due at an instant."""
        return self.start(call, at_us=_instant_us(when))

    def start_after(self, delay_ms: float, call: Call) -> Start:
        """Check one call that is due after a delay."""
        check_number("delay_ms", delay_ms)
        if delay_ms > (_LATEST_US - self._engine.clock.now_us()) / 1000:
            raise ValueError(f"delay_ms={delay_ms!r} ends after the year 9999")
        return self.start(call, delay_us=to_us(delay_ms))

    def start_many(self, calls: Iterable[Call]) -> list[Start]:
        """Check many calls."""
        starts = []
        for call in calls:
            if not isinstance(call, Call):
                raise TypeError(f"run_many takes Call(...) objects, not {call!r:.80}")
            starts.append(self.start(call))
        return starts

    def start_op(self, starts: list[Start]) -> Op[list[str]]:
        """Return the operation that starts runs."""
        return start_runs(self._namespace, starts, stands_alone=True)

    def _policy(self, action: "Action[Any, Any, Any] | None", options: Mapping[str, Any]) -> RetryPolicy:
        """Options: per call, else per action, else per retrier, else the default; each field on its own."""
        key = None if action is None else action.name
        found = self._default_policies.get(key)
        if found is None:
            found = RetryPolicy(**{**self._options, **(action.options if action else {})})
            self._default_policies[key] = found
        own = {name: value for name, value in options.items() if name not in _CALL_ONLY}
        if not own:
            return found
        return RetryPolicy(**{**self._options, **(action.options if action else {}), **own})

    # Reading.

    def status(self, run_id: str) -> Op[RunStatus]:
        """Return the operation that reads a status."""
        return reads.read_status(self._namespace, _known(run_id))

    def get(self, run_id: str) -> Op[tuple[Row, Rows, Rows]]:
        """Return the operation that reads a run."""
        return reads.read_run(self._namespace, _known(run_id))

    def run_of(self, row: Row, attempts: Rows, workers: Rows) -> Run:
        """Build the run that `get` has read."""
        return reads.run_of(row, attempts, self.database.leases.alive(workers))

    def listing(
        self,
        *,
        state: str | None,
        action: object,
        queue: str | None,
        callback: str | None,
        limit: int,
        cursor: str | None,
    ) -> Callable[[], Op[tuple[Rows, Rows, Rows]]]:
        """Check a filter, and return what makes the operation that lists."""
        _check_choice("state", state, tuple(State))
        _check_choice("callback", callback, get_args(CallbackState))
        check_count("limit", limit, at_least=1, at_most=_MOST_RUNS)
        _check_queue(queue)
        if cursor is not None and not is_run_id(cursor):
            raise ValueError(f"cursor must be the cursor of another page, not {cursor!r}")
        names = self._names(action)
        return lambda: reads.read_runs(
            self._namespace, state=state, actions=names, queue=queue, callback=callback, before=cursor, count=limit + 1
        )

    def page_of(self, limit: int, rows: Rows, attempts: Rows, workers: Rows) -> Page:
        """Build the page that `listing` has read."""
        return reads.page_of(rows, attempts, self.database.leases.alive(workers), limit)

    # Steering.

    def cancel(self, run_id: str) -> Op[bool]:
        """Return the operation that cancels."""
        return control.cancel_run(self._namespace, _known(run_id))

    def cancel_all(self, which: control.Filter) -> Op[int]:
        """Return the operation that cancels in bulk."""
        return control.cancel_runs(self._namespace, which)

    def cleanup(self, run_id: str, *, discard_callback: bool) -> Op[bool]:
        """Return the operation that removes a run."""
        return control.clean_up_run(self._namespace, _known(run_id), discard_callback=discard_callback)

    @staticmethod
    def tell_of_discarded(run_id: str, *, discarded: bool) -> None:
        """Leave a trace of an operator's decision."""
        if discarded:
            logger.warning("the pending callback of run %s was discarded", run_id, extra={"run_id": run_id})

    def retry(self, run_id: str) -> Op[str]:
        """Return the operation that starts a run afresh."""
        yield from control.retry_run(self._namespace, _known(run_id))
        return run_id

    def retry_all(self, which: control.Filter) -> Op[int]:
        """Return the operation that starts runs afresh in bulk."""
        return control.retry_runs(self._namespace, which)

    def which(self, method: str, *, action: object, queue: str | None, everything: bool) -> control.Filter:
        """Check the filter of a bulk call."""
        if action is None and queue is None and everything is not True:
            raise ValueError(f"{method}: give a filter (action=..., queue=...), or everything=True if all are meant")
        _check_queue(queue)
        return control.Filter(self._names(action), queue)

    def _names(self, given: object) -> tuple[str, ...] | None:
        """Return all names under which runs of an action may be stored; None for no action in particular."""
        if given is None:
            return None
        given = given.action if isinstance(given, Bound) else given
        name, action = self._engine.registry.find_action(given, starts=False)
        return (name,) if action is None else (name, *action.aliases)

    def waiting(self, wake: Callable[[], None], run_id: str, timeout_ms: float | None) -> Waiting:
        """Return what waits for a run."""
        return Waiting(self.database, self._engine.clock, wake, run_id, timeout_ms)


def _known(run_id: object) -> str:
    """Raise `RunNotFound` for what cannot be an id, without asking the database."""
    if not is_run_id(run_id):
        raise RunNotFound(run_id=run_id)
    return str(run_id)


def _instant_us(when: datetime | float) -> int:
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ValueError(f"when must be an aware datetime, and {when!r} is naive: give it a tzinfo, such as UTC")
        us = (when - _EPOCH) // timedelta(microseconds=1)  # exact, as a float of seconds is not
        if us > _LATEST_US:
            raise ValueError(f"when={when!r} lies after the year 9999 in UTC")
        return us
    if isinstance(when, bool) or not isinstance(when, int | float):
        raise TypeError(f"when must be an aware datetime, or milliseconds since the epoch, not {when!r}")
    check_number("when", when)
    if when < _SECONDS_SUSPECTED_BELOW:
        raise ValueError(f"when={when!r} looks like seconds: pass milliseconds since the epoch, or an aware datetime")
    if when * 1000 > _LATEST_US:
        raise ValueError(f"when={when!r} lies after the year 9999: pass milliseconds since the epoch")
    return round(when * 1000)


def _check_key(key: object) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str):
        raise TypeError(f"idempotency_key must be a string, not {key!r}")
    if not 1 <= len(key) <= _KEY_LENGTH:
        raise ValueError(f"idempotency_key must have 1 to {_KEY_LENGTH} characters, not {len(key)}")
    with suppress(UnicodeEncodeError):
        key.encode()
        if "\0" not in key:
            return key
    raise ValueError(f"idempotency_key {key!r} has characters that a database cannot store")


def _check_queue(queue: object) -> None:
    if queue is not None:
        check_name("queue", queue)


def _check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    if value is not None and value not in tuple(choices):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
