"""A run from its start to its end: outcomes, failures of every kind, attempts, times, stops."""

import asyncio
import contextlib
import logging
import math
import re
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import pytest
from pydantic import PlainSerializer

from action_retrier import (
    ActionCtx,
    Attempt,
    Call,
    Canceled,
    Completed,
    Failed,
    InProgress,
    InvalidArguments,
    MutationCtx,
    NonRetryableError,
    RetryAfter,
    Run,
    RunNotFound,
    Success,
    SyncActionCtx,
    UnknownFunction,
)

from ..stores import whatever_the_database

MIB = 1024 * 1024
KIB = 1024


class Declined(Exception):
    """A user's own exception."""

    class ForGood(Exception):
        """A nested one."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("str() is broken, too")

    __repr__ = __str__


def decline() -> None:
    raise Declined("card")


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


async def failed(api: Any, error: Any, *, flavour: str = "def", **policy: Any) -> tuple[Failed, Run, int]:
    """Run an action that always raises *error*; how it ended."""
    broken = api.scripted(error, flavour=flavour, **policy)
    healthy = api.scripted("alive", name="healthy")
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
        assert isinstance(result, Failed), result
        assert await api.result(worker, await api.run(api.app, "healthy")) == Success(return_value="alive")
        assert healthy.executions == 1
    return result, await api.get(api.app, run_id), broken.executions


# -- outcomes ----------------------------------------------------------------------------------------------------------


async def test_a_run_goes_from_pending_over_running_to_succeeded(api, gate):
    """`state` (`"pending" | "running" | "succeeded" | "failed" | "canceled"`)."""

    @api.app.action(name="work")
    def work() -> str:
        gate.wait()
        return "done"

    run_id = await api.run(api.app, work)
    assert (await api.get(api.app, run_id)).state == "pending"
    async with api.worker() as worker:
        await gate.until_reached()
        assert (await api.get(api.app, run_id)).state == "running"
        assert await api.status(api.app, run_id) == InProgress()
        gate.open()
        await worker.until_idle()
    assert (await api.get(api.app, run_id)).state == "succeeded"
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))


async def test_an_action_that_fails_is_retried_until_it_succeeds(api, flavour):
    """One durable call, retried until it ends."""
    flaky = api.scripted(ValueError("1"), KeyError("2"), {"answer": 42}, flavour=flavour)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value={"answer": 42})
    run = await api.get(api.app, run_id)
    assert (run.state, run.failures, flaky.executions) == ("succeeded", 2, 3)


async def test_a_run_is_executed_once_if_nothing_goes_wrong(api, flavour):
    """Only failures are retried."""
    done = api.scripted("done", flavour=flavour)
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(24 * 3_600_000)
        await worker.until_idle()
    assert done.executions == 1
    assert (await api.get(api.app, run_id)).failures == 0


async def test_the_error_is_the_last_exceptions_message(api, flavour):
    """`Failed.error`: the last exception's message; `error_type`: builtins without module."""
    flaky = api.scripted(KeyError("first"), ValueError("last of them"), flavour=flavour, max_failures=1)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Failed(error="last of them", error_type="ValueError")
    assert (await api.get(api.app, run_id)).state == "failed"


@whatever_the_database
@pytest.mark.parametrize(
    ("error", "message", "error_type"),
    [
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(""), "ValueError", "ValueError"),
        (ValueError("two", 2), "('two', 2)", "ValueError"),
        (KeyError("key"), "'key'", "KeyError"),
        (Declined("card"), "card", f"{__name__}.Declined"),
        (Declined(), "Declined", f"{__name__}.Declined"),
        (Declined.ForGood("card"), "card", f"{__name__}.Declined.ForGood"),
        (ExceptionGroup("several", [ValueError("a")]), "several (1 sub-exception)", "ExceptionGroup"),
        (ValueError, "ValueError", "ValueError"),
    ],
    ids=repr,
)
async def test_how_a_failure_is_told(api, error, message, error_type):
    """... its class name if that is empty; `error_type`: "module.QualName", builtins without module."""
    result, run, _ = await failed(api, error, max_failures=0)
    assert result == Failed(error=message, error_type=error_type)
    assert (run.attempts[0].error, run.attempts[0].error_type) == (message, error_type)


@whatever_the_database
@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (SystemExit(3), "SystemExit"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("close"), "GeneratorExit"),
        (BaseExceptionGroup("group", [KeyboardInterrupt()]), "BaseExceptionGroup"),
        (StopIteration(5), "StopIteration"),
        (StopAsyncIteration("stop"), "StopAsyncIteration"),
        (RecursionError("deep"), "RecursionError"),
        (MemoryError(), "MemoryError"),
        (TimeoutError("theirs"), "TimeoutError"),
        (asyncio.CancelledError("own"), "asyncio.exceptions.CancelledError"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
async def test_any_exception_is_a_failure_and_is_retried(api, flavour, error, error_type):
    """Any exception, `SystemExit`, `KeyboardInterrupt` and its own `CancelledError` included, is a failure."""
    if flavour == "async def" and isinstance(error, StopIteration):
        error_type = "RuntimeError"  # what Python itself makes of it in a coroutine
    result, run, executions = await failed(api, error, flavour=flavour, max_failures=2)
    assert result.error_type == error_type
    assert executions == 3
    assert run.failures == 3


async def test_the_worker_lives_on_after_an_exception_that_would_end_a_program(api, flavour):
    """... is a failure and is retried, and the worker lives on: so do its other actions."""
    deadly = api.scripted(SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), "survived", flavour=flavour)
    done = api.scripted("done", name="bystander")
    run_id = await api.run(api.app, deadly.action)
    others = await api.run_many(api.app, [Call(done.action)] * 5)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="survived")
        for other in others:
            assert await api.result(worker, other) == Success(return_value="done")
    assert done.executions == 5


async def test_an_action_that_cancels_its_own_task_has_failed(async_api):
    """Its own `CancelledError` is a failure: only the retrier's makes a run canceled."""
    api = async_api

    @api.app.action(name="work", max_failures=1)
    async def work(ctx: ActionCtx) -> int:
        if ctx.attempt == 1:
            asyncio.current_task().cancel()
            await asyncio.get_running_loop().create_future()
        return ctx.attempt

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value=2)


# -- RetryAfter, NonRetryableError, causes -----------------------------------------------------------------------------


async def test_a_non_retryable_error_fails_the_run_at_once(api, flavour):
    """`NonRetryableError` fails the run at once."""
    result, run, executions = await failed(api, NonRetryableError("card is stolen"), flavour=flavour)
    assert executions == 1
    assert result.error == "card is stolen"
    assert result.error_type.endswith("NonRetryableError")
    assert run.failures == 1


async def test_a_subclass_of_non_retryable_error_fails_the_run_at_once(api):
    """Users give their own errors this meaning by inheritance."""

    class Stolen(NonRetryableError):
        pass

    result, _, executions = await failed(api, Stolen("card"))
    assert executions == 1
    assert result.error == "card"
    assert result.error_type.endswith("Stolen")


@pytest.mark.parametrize("wrapper", [NonRetryableError("the wrapper"), RetryAfter(1_000, "the wrapper")])
async def test_a_wrapper_with_a_cause_is_reported_as_its_cause(api, wrapper, flavour):
    """With a `__cause__`, `RetryAfter` and `NonRetryableError` are reported as their cause."""
    wrapper.__cause__ = Declined("the cause")
    result, run, _ = await failed(api, wrapper, max_failures=0, flavour=flavour)
    assert result == Failed(error="the cause", error_type=f"{__name__}.Declined")
    assert run.attempts[0].error_type == f"{__name__}.Declined"


async def test_a_raise_from_is_a_cause(api):
    """`raise RetryAfter(...) from error`."""
    executions = []

    @api.app.action(name="work", max_failures=1)
    def work() -> None:
        executions.append(1)
        try:
            decline()
        except Declined as error:
            raise RetryAfter(5_000) from error

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Failed(error="card", error_type=f"{__name__}.Declined")
    run = await api.get(api.app, run_id)
    assert 5_000 <= run.attempts[0].delay_ms <= 5_500
    assert len(executions) == 2


async def test_a_context_is_no_cause(api):
    """Only a `__cause__` replaces what was raised; an exception that was merely being handled does not."""

    @api.app.action(name="work")
    def work() -> None:
        try:
            decline()
        except Declined:
            raise NonRetryableError("no more")  # noqa: B904 - without a cause, on purpose

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert result.error == "no more"


async def test_an_ordinary_exception_with_a_cause_is_reported_as_itself(api):
    """Only `RetryAfter` and `NonRetryableError` are reported as their cause."""
    error = ValueError("itself")
    error.__cause__ = Declined("the cause")
    result, _, _ = await failed(api, error, max_failures=0)
    assert result == Failed(error="itself", error_type="ValueError")


# -- return values that JSON cannot carry ------------------------------------------------------------------------------


@whatever_the_database
@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, object()},
        [math.nan],
        math.inf,
        {"x": -math.inf},
        print,
        circle(),
        "a\0b",
        "\ud800",
        "x" * (MIB + 1),
        ["€" * (MIB // 2)],
    ],
    ids=["object", "set", "nan", "inf", "-inf", "function", "circle", "NUL", "surrogate", "over 1 MiB", "bytes"],
)
async def test_a_return_value_that_json_cannot_carry_fails_the_run_at_once(api, value):
    """... fails the run at once (its side effects happened: running it again helps nobody)."""
    executions = []

    @api.app.action(name="give")
    def give():
        executions.append(1)
        return value

    run_id = await api.run(api.app, give)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert (type(result), result.error_type) == (Failed, "InvalidReturnValue")
    assert result.error
    assert executions == [1]


async def test_a_return_value_that_breaks_while_it_is_encoded_fails_the_run_at_once(api):
    """Whatever happens while the value is encoded, the run ends."""

    class Hostile(dict):
        def items(self):
            raise SystemExit

        __iter__ = __getitem__ = __len__ = items

    executions = []

    @api.app.action(name="give")
    def give() -> dict:
        executions.append(1)
        return Hostile(a=1)

    run_id = await api.run(api.app, give)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert executions == [1]
    assert isinstance(result, Success) or result.error_type == "InvalidReturnValue"


async def test_a_return_value_that_breaks_while_it_is_looked_through_fails_the_run_at_once(api):
    """A null may be a number that JSON does not have, so the value itself is looked at, and its class is user code."""

    class Hostile:
        def __iter__(self):
            raise SystemExit

        __len__ = __contains__ = __iter__

    @api.app.action(name="give")
    def give() -> Annotated[Any, PlainSerializer(lambda _: None, when_used="json")]:
        return Hostile()

    run_id = await api.run(api.app, give)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert (type(result), result.error_type) == (Failed, "InvalidReturnValue")
    assert result.error.endswith("cannot be stored: SystemExit")


# -- recording a failure never fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", ["a\0b", "\ud800 alone", "ANSI \x1b[31m and \r\n", "'; DROP TABLE notes; --", "ß€😀"], ids=ascii
)
async def test_any_error_text_is_recorded(api, message):
    """NUL and lone surrogates are replaced in error texts: recording a failure must never fail."""
    result, run, executions = await failed(api, ValueError(message), max_failures=1)
    assert executions == 2
    assert "\0" not in result.error
    result.error.encode()
    assert len(result.error) >= len(message) - 2
    run.attempts[0].error.encode()
    run.attempts[0].traceback.encode()


async def test_an_exception_that_cannot_be_printed_is_recorded(api, flavour):
    """Recording a failure must never fail: not even if `str()` and `repr()` of the exception do."""
    result, _, executions = await failed(api, Unprintable(), flavour=flavour, max_failures=1)
    assert executions == 2
    assert result.error
    assert result.error_type == f"{__name__}.Unprintable"


class Nowhere(Exception):
    """An exception whose class tells lies about where it is."""


Nowhere.__module__ = None  # type: ignore[assignment]


async def test_an_exception_of_an_odd_class_is_recorded(api, flavour):
    """Recording a failure must never fail, whatever the class says about itself."""
    result, _, executions = await failed(api, Nowhere("odd"), flavour=flavour, max_failures=1)
    assert executions == 2
    assert result.error == "odd"
    assert "Nowhere" in result.error_type


async def test_causes_that_form_a_circle_are_recorded(api):
    """Recording a failure must never fail: not even if the causes have no end."""
    first, second = NonRetryableError("first"), RetryAfter(1, "second")
    first.__cause__, second.__cause__ = second, first
    result, _, _ = await failed(api, first)
    assert result.error in {"first", "second"}


@pytest.mark.parametrize("delay_ms", [10**15, 10**30, 1e300])
async def test_a_delay_beyond_all_time_loses_no_run(api, delay_ms):
    """Overflow is never an exception: the attempt is recorded, and the run waits or has failed."""
    broken = api.scripted(RetryAfter(delay_ms, "much later"))
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await worker.until_idle()
    run = await api.get(api.app, run_id)
    assert run.state in {"pending", "failed"}
    assert (run.failures, broken.executions) == (1, 1)
    assert run.attempts[0].error == "much later"


async def test_a_long_error_text_is_cut(api):
    """Error text <= 16 KiB (cut, and marked as cut)."""
    result, run, _ = await failed(api, ValueError("x" * (5 * MIB)), max_failures=0)
    assert 8 * KIB < len(result.error.encode()) <= 16 * KIB
    assert set(result.error) != {"x"}, "the cut is marked"
    assert len(run.attempts[0].traceback.encode()) <= 64 * KIB


async def test_a_deep_traceback_is_cut(api):
    """Traceback <= 64 KiB (cut, and marked as cut)."""

    def dig(depth: int) -> None:
        if depth == 0:
            raise ValueError("at the bottom")
        dig_other(depth - 1)

    def dig_other(depth: int) -> None:
        dig(depth)

    @api.app.action(name="dig", max_failures=0)
    def start() -> None:
        dig(450)

    run_id = await api.run(api.app, start)
    async with api.worker() as worker:
        await api.result(worker, run_id)
    traceback = (await api.get(api.app, run_id)).attempts[0].traceback
    assert 32 * KIB < len(traceback.encode()) <= 64 * KIB
    assert traceback.startswith("Traceback (most recent call last)")
    assert traceback.splitlines()[-1] != "ValueError: at the bottom" or "cut" in traceback, "the cut is marked"


# -- attempts and times ------------------------------------------------------------------------------------------------


async def test_the_attempts_tell_the_story_of_the_run(api, flavour):
    """`attempts` (each: number, started_at, ended_at, worker, error_type, error, traceback, the delay after it)."""
    flaky = api.scripted(Declined("one"), ValueError("two"), "done", flavour=flavour, jitter=0)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        await api.result(worker, run_id, step_ms=1_000)
    run = await api.get(api.app, run_id)

    assert all(isinstance(attempt, Attempt) for attempt in run.attempts)
    assert [attempt.number for attempt in run.attempts] == [1, 2, 3]
    assert [attempt.error_type for attempt in run.attempts] == [f"{__name__}.Declined", "ValueError", None]
    assert [attempt.error for attempt in run.attempts] == ["one", "two", None]
    assert [attempt.delay_ms for attempt in run.attempts] == [250, 500, None]
    assert ["step" in (attempt.traceback or "") for attempt in run.attempts] == [True, True, False]
    start = run.created_at
    assert [attempt.started_at - start for attempt in run.attempts] == [timedelta(seconds=n) for n in (0, 1, 2)]
    assert [attempt.ended_at - start for attempt in run.attempts] == [timedelta(seconds=n) for n in (0, 1, 2)]
    assert len({attempt.worker for attempt in run.attempts}) == 1
    assert run.attempts[0].worker


async def test_a_run_that_succeeds_at_once_has_one_attempt(api):
    """... the successful one too."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
    (attempt,) = (await api.get(api.app, run_id)).attempts
    assert (attempt.number, attempt.error, attempt.error_type, attempt.traceback) == (1, None, None, None)
    assert (attempt.started_at, attempt.ended_at) == (api.clock.now(), api.clock.now())
    assert attempt.worker


async def test_a_traceback_names_the_users_lines(api):
    """The traceback is for the user: it holds the line that raised."""
    _, run, _ = await failed(api, Declined("card"), max_failures=0)
    assert "Traceback (most recent call last)" in run.attempts[0].traceback
    assert "raise item" in run.attempts[0].traceback
    assert "Declined: card" in run.attempts[0].traceback


async def test_the_times_of_a_run_are_aware_utc_datetimes(api, gate):
    """created/due/started/completed times (aware UTC datetimes)."""

    @api.app.action(name="work")
    def work() -> None:
        gate.wait()

    created = api.clock.now()
    run_id = await api.run_after(api.app, 5_000, work)
    run = await api.get(api.app, run_id)
    assert isinstance(run, Run)
    assert (run.created_at, run.due_at) == (created, created + timedelta(seconds=5))
    assert (run.started_at, run.completed_at) == (None, None)

    api.clock.advance(7_000)
    async with api.worker() as worker:
        await gate.until_reached()
        run = await api.get(api.app, run_id)
        assert (run.started_at, run.completed_at) == (created + timedelta(seconds=7), None)
        api.clock.advance(2_000)
        gate.open()
        await worker.until_idle()
    run = await api.get(api.app, run_id)
    assert run.started_at == created + timedelta(seconds=7)
    assert run.completed_at == created + timedelta(seconds=9)
    for moment in (run.created_at, run.due_at, run.started_at, run.completed_at, run.attempts[0].started_at):
        assert moment.utcoffset() == timedelta(0)


async def test_get_tells_everything_known(api):
    """`Run`: everything known."""

    @api.app.action(name="charge")
    def charge(order_id: int) -> str:
        return "ok"

    run_id = await api.run(api.app, charge, {"order_id": 7}, queue="mail", priority=3, context=[1], max_failures=0)
    run = await api.get(api.app, run_id)
    assert (run.id, run.action, run.args) == (run_id, "charge", {"order_id": 7})
    assert (run.queue, run.priority, run.context, run.state) == ("mail", 3, [1], "pending")
    assert (run.failures, run.progress, run.result, run.callback, list(run.attempts)) == (0, None, None, None, [])
    async with api.worker() as worker:
        await worker.until_idle()
    assert (await api.get(api.app, run_id)).result == Success(return_value="ok")


async def test_an_attempt_that_executes_is_counted_already(api, gate):
    """`attempt` is 1-based and counted when the attempt begins."""
    numbers = []

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> None:
        numbers.append(ctx.attempt)
        if ctx.attempt == 2:
            gate.wait()
        raise ValueError

    run_id = await api.run(api.app, work, max_failures=1)
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(1_000)
        await gate.until_reached()
        run = await api.get(api.app, run_id)
        assert (run.state, run.failures) == ("running", 1)
        gate.open()
        await worker.until_idle()
    assert numbers == [1, 2]


# -- run_at, run_after, run_many ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["run_after", "run_at aware", "run_at ms", "run_at in another zone"])
async def test_a_run_for_later_begins_at_its_time_and_not_before(api, way):
    """`run_at`: aware datetime, or ms since the epoch; `run_after`: delay_ms."""
    done = api.scripted("done")
    when = api.clock.now() + timedelta(milliseconds=1_500)
    run_id = await {
        "run_after": lambda: api.run_after(api.app, 1_500, done.action),
        "run_at aware": lambda: api.run_at(api.app, when, done.action),
        "run_at ms": lambda: api.run_at(api.app, round(when.timestamp() * 1_000), done.action),
        "run_at in another zone": lambda: api.run_at(
            api.app, when.astimezone(timezone(timedelta(hours=-9, minutes=-30))), done.action
        ),
    }[way]()
    assert (await api.get(api.app, run_id)).due_at == when
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(1_499)
        await worker.until_idle()
        assert done.executions == 0
        assert await api.status(api.app, run_id) == InProgress()
        api.clock.advance(1)
        await worker.until_idle()
        assert done.executions == 1


async def test_a_run_that_is_not_due_is_not_taken_along_with_one_that_is(api):
    """No attempt starts before its time, not even by a millisecond, and not because the worker looks anyway."""
    executed = []

    @api.app.action(name="work")
    def work(name: str) -> None:
        executed.append(name)

    await api.run_after(api.app, 1_000, work, {"name": "later"})
    async with api.worker() as worker:
        api.clock.advance(999)
        for number in range(3):
            await api.run(api.app, work, {"name": f"now {number}"})
            await worker.until_idle()
        assert executed == ["now 0", "now 1", "now 2"]
        api.clock.advance(1)
        await worker.until_idle()
    assert executed == ["now 0", "now 1", "now 2", "later"]


@pytest.mark.parametrize("when", [timedelta(days=-1), timedelta(milliseconds=-1), timedelta(0)])
async def test_the_past_means_now(api, when):
    """... the past means now."""
    done = api.scripted("done")
    run_id = await api.run_at(api.app, api.clock.now() + when, done.action)
    assert (await api.get(api.app, run_id)).due_at <= api.clock.now()
    async with api.worker() as worker:
        await worker.until_idle()
    assert done.executions == 1


async def test_the_past_does_not_jump_the_queue(api):
    """The past means *now*: a run for yesterday does not overtake what is due already."""
    started = []

    @api.app.action(name="work")
    def work(name: str) -> None:
        started.append(name)

    await api.run(api.app, work, {"name": "first"})
    api.clock.advance(1_000)
    await api.run_at(api.app, api.clock.now() - timedelta(days=1), work, {"name": "yesterday"})
    async with api.worker(concurrency=1) as worker:
        await worker.until_idle()
    assert started == ["first", "yesterday"]


@pytest.mark.parametrize(
    "when",
    [datetime(2031, 1, 1), 1_900_000_000, 10**11 - 1, 0, -1, math.nan, math.inf],  # noqa: DTZ001 - naive on purpose
    ids=str,
)
async def test_a_time_that_is_naive_or_in_seconds_is_a_value_error(api, when):
    """`when` must be aware: a naive datetime, or a number below 10**11 (seconds?), is a `ValueError`."""
    done = api.scripted("done")
    with pytest.raises(ValueError, match=r"when|aware|seconds|ms"):
        await api.run_at(api.app, when, done.action)
    assert await api.all_runs() == []


@pytest.mark.parametrize("when", ["2031-01-01T00:00:00Z", None, True, timedelta(seconds=1)], ids=str)
async def test_a_time_of_another_type_is_refused(api, when):
    """Aware datetime, or ms since the epoch."""
    done = api.scripted("done")
    with pytest.raises((TypeError, ValueError), match="when"):
        await api.run_at(api.app, when, done.action)
    assert await api.all_runs() == []


async def test_a_number_of_milliseconds_from_ten_to_the_eleven_is_accepted(api):
    """... a number *below* 10**11."""
    done = api.scripted("done")
    run_id = await api.run_at(api.app, 10**11, done.action)
    assert await api.status(api.app, run_id) == InProgress()


@whatever_the_database
@pytest.mark.parametrize("delay_ms", [-1, math.nan, math.inf, "5", None, True, timedelta(seconds=1)], ids=str)
async def test_a_wrong_delay_is_refused(api, delay_ms):
    """Wrong types, negative, NaN or infinite values: `ValueError` / `TypeError`, nothing stored."""
    done = api.scripted("done")
    with pytest.raises((ValueError, TypeError), match="delay_ms"):
        await api.run_after(api.app, delay_ms, done.action)
    assert await api.all_runs() == []


@pytest.mark.parametrize("far", [10**15, 10**30, 10**400, 1e308], ids=["10**15", "10**30", "10**400", "1e308"])
@pytest.mark.parametrize("verb", ["run_at", "run_after"])
async def test_a_time_beyond_the_calendar_is_refused_or_waits(api, verb, far):
    """A `ValueError`, or a run that waits and can be read and canceled like any other."""
    done = api.scripted("done")
    try:
        run_id = await getattr(api, verb)(api.app, far, done.action)
    except ValueError:
        assert await api.all_runs() == []
        return
    async with api.worker() as worker:
        await worker.until_idle()
    run = await api.get(api.app, run_id)
    assert (run.state, done.executions) == ("pending", 0)
    assert run.due_at > api.clock.now()
    assert await api.cancel(api.app, run_id) is True


async def test_the_last_moment_of_the_calendar_is_a_time(api):
    """`when`: an aware datetime, any one."""
    done = api.scripted("done")
    run_id = await api.run_at(api.app, datetime.max.replace(tzinfo=UTC), done.action)
    assert (await api.get(api.app, run_id)).due_at.year == 9999
    assert [run.id for run in await api.all_runs()] == [run_id]


async def test_run_many_starts_all_in_order(api):
    """`run_ids = await retrier.run_many(ctx, [Call(action, args, **options), ...])`."""

    @api.app.action(name="work")
    def work(number: int) -> int:
        return number

    run_ids = await api.run_many(api.app, [Call(work, {"number": number}) for number in range(250)])
    assert len(set(run_ids)) == 250
    runs = [await api.get(api.app, run_id) for run_id in run_ids[:5] + run_ids[-5:]]
    assert [run.args["number"] for run in runs] == [*range(5), *range(245, 250)]
    async with api.worker() as worker:
        await worker.until_idle()
    assert await api.status(api.app, run_ids[123]) == Completed(result=Success(return_value=123))


async def test_run_many_of_nothing_starts_nothing(api):
    """An empty list is a list."""
    assert await api.run_many(api.app, []) == []


async def test_run_many_starts_all_or_none(api):
    """Nothing stored if one of them is wrong."""

    @api.app.action(name="work")
    def work(number: int) -> None: ...

    calls = [Call(work, {"number": 1}), Call(work, {"number": "two"}), Call(work, {"number": 3})]
    with pytest.raises(InvalidArguments):
        await api.run_many(api.app, calls)
    assert await api.all_runs() == []


async def test_run_many_takes_calls_only(api):
    """A `bind` is no `Call`; nothing is stored."""
    done = api.scripted("done")
    with pytest.raises(TypeError, match=r"run_many takes Call\(\.\.\.\) objects, not"):
        await api.run_many(api.app, [Call(done.action), done.action.bind()])
    assert await api.all_runs() == []


async def test_a_call_shows_its_action(api):
    """Whether it is the action or its name."""
    done = api.scripted("done", name="charge")
    assert repr(Call(done.action)) == repr(Call("charge")) == "Call('charge')"


async def test_a_call_takes_everything_that_run_takes(api, note):
    """`Call` takes everything `run` takes after `ctx`."""
    done = api.scripted("done")

    @api.app.mutation(name="finished")
    def finished(ctx: MutationCtx, context: str) -> None:
        note(ctx, context)

    (run_id,) = await api.run_many(
        api.app,
        [Call(done.action, {}, on_complete=finished, context="why", queue="mail", priority=2, idempotency_key="k")],
    )
    run = await api.get(api.app, run_id)
    assert (run.queue, run.priority, run.context, run.callback.name) == ("mail", 2, "why", "finished")
    async with api.worker() as worker:
        await api.result(worker, run_id)
        await worker.until_idle()
    assert api.notes() == ["why"]


async def test_a_run_id_is_a_string(api):
    """`RunId` is a `str`, and plain strings are accepted."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    assert isinstance(run_id, str)
    plain = "".join(run_id)
    assert await api.status(api.app, plain) == InProgress()
    assert {run_id: 1}[plain] == 1


# -- stops -------------------------------------------------------------------------------------------------------------


async def test_an_async_attempt_cut_off_by_a_stop_is_a_failure(async_api, gate):
    """... one cut off by a stop is a failure: `"WorkerStopped"`, retried by the next worker."""
    api, seen = async_api, []

    @api.app.action(name="work", max_failures=1)
    async def work(ctx: ActionCtx) -> int:
        if ctx.attempt == 1:
            try:
                await gate.wait_async()
            finally:
                seen.append((ctx.canceled, bool(ctx.stop_reason)))
        return ctx.attempt

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=0):
        await gate.until_reached()
    run = await api.get(api.app, run_id)
    assert (run.state, run.failures) == ("pending", 1)
    assert run.attempts[0].error_type == "WorkerStopped"
    assert seen == [(True, True)]
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value=2)


async def test_a_thread_is_told_that_the_worker_stops(api, gate):
    """`canceled`: true whenever this attempt should stop: ... shutting down."""
    seen = []

    @api.app.action(name="work", max_failures=0)
    def work(ctx: SyncActionCtx) -> None:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(2_000):
            if ctx.canceled:
                seen.append(bool(ctx.stop_reason))
                raise RuntimeError("stopped half way")
            pause.wait(0.005)

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=0):
        await gate.until_reached()
    await api.eventually(lambda: seen)
    assert seen == [True]
    run = await api.get(api.app, run_id)
    assert run.state == "failed"
    assert run.failures == 1


async def test_a_thread_that_makes_it_after_all_has_succeeded(api, gate):
    """Told to stop and done a moment later: what it did is not done again."""

    @api.app.action(name="work", max_failures=0)
    def work(ctx: SyncActionCtx) -> str:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(2_000):
            if ctx.canceled:
                return "done"
            pause.wait(0.005)
        return "nobody told"

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=0):
        await gate.until_reached()
    assert await api.status(api.app, run_id) == Completed(Success("done"))


async def test_a_worker_that_stops_takes_no_new_run(api, gate):
    """Draining means: finish what has begun, begin nothing."""
    executed = []

    @api.app.action(name="work")
    def work(name: str) -> None:
        executed.append(name)
        if name == "first":
            gate.wait()

    await api.run(api.app, work, {"name": "first"}, priority=1)
    second = await api.run(api.app, work, {"name": "second"})
    async with api.worker(concurrency=1, grace_ms=20_000):
        await gate.until_reached()
        threading.Timer(0.3, gate.open).start()
    assert executed == ["first"]
    run = await api.get(api.app, second)
    assert (run.state, run.failures, list(run.attempts)) == ("pending", 0, [])


# -- unknown actions ---------------------------------------------------------------------------------------------------


async def test_a_worker_never_takes_a_run_whose_action_it_does_not_know(api):
    """A worker never takes a run whose action it does not know; such runs wait, are visible (`blocked_by`)."""
    done = api.scripted("done")
    run_id = await api.run(api.app, "nobody.knows")
    known = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
        run = await api.get(api.app, run_id)
        assert (run.state, run.failures, run.blocked_by) == ("pending", 0, "nobody.knows")
        assert (await api.list(api.app, state="pending")).runs[0].blocked_by == "nobody.knows"
        assert (await api.get(api.app, known)).state == "succeeded"
        assert (await api.get(api.app, known)).blocked_by is None


async def test_a_run_whose_action_a_live_worker_knows_is_not_blocked(api):
    """`blocked_by` (the action or callback name that no live worker knows, *if that is what it waits for*)."""
    done = api.scripted("done")
    async with api.worker() as worker:
        run_id = await api.run_after(api.app, 60_000, done.action)
        await worker.until_idle()
        assert (await api.get(api.app, run_id)).blocked_by is None


async def test_a_blocked_run_is_executed_once_a_worker_knows_its_action(api):
    """Such runs wait."""
    run_id = await api.run(api.app, "nobody.knows.yet")
    async with api.worker() as worker:
        await worker.until_idle()
        async with api.sibling() as newer:
            newer.scripted("at last", name="nobody.knows.yet")
            async with newer.worker() as knowing:
                assert await newer.result(knowing, run_id) == Success(return_value="at last")


async def test_a_worker_never_takes_a_run_whose_callback_it_does_not_know(api, note):
    """A worker never takes a run whose action, *or whose callback*, it does not know."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete="nobody.knows")
    await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
        run = await api.get(api.app, run_id)
        assert (run.state, run.blocked_by, done.executions) == ("pending", "nobody.knows", 1)

    async with api.sibling() as newer:
        newer.scripted("done")

        @newer.app.mutation(name="nobody.knows")
        def callback(ctx: MutationCtx) -> None:
            note(ctx, "called back")

        async with newer.worker() as worker:
            assert await newer.result(worker, run_id) == Success(return_value="done")
            await worker.until_idle()
    assert api.notes() == ["called back"]


async def test_workers_warn_about_runs_that_nobody_knows(api, caplog):
    """... and workers warn about them once a minute."""
    await api.run(api.app, "nobody.knows")

    def warnings() -> list[str]:
        return [
            f"{record.getMessage()} {vars(record)}"
            for record in caplog.records
            if record.levelno == logging.WARNING and "nobody.knows" in f"{record.getMessage()} {vars(record)}"
        ]

    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(61_000)
        await api.eventually(warnings, within_s=10)
        first = len(warnings())
        await worker.until_idle()
        assert len(warnings()) <= first + 1


async def test_an_unknown_mutation_is_an_unknown_function(api):
    """`UnknownFunction` says which one."""
    with pytest.raises(UnknownFunction, match="nobody_knows"):
        await api.run_mutation(nobody_knows)


def nobody_knows(ctx: MutationCtx) -> None: ...


# -- one outcome -------------------------------------------------------------------------------------------------------


async def test_what_a_superseded_attempt_reports_later_changes_nothing(api, gate):
    """A run completes once. What a superseded attempt reports later changes nothing."""
    ended = threading.Event()

    @api.app.action(name="work", attempt_timeout_ms=1_000_000)
    def work(ctx: SyncActionCtx) -> str:
        if ctx.attempt == 1:
            gate.wait()  # a thread that ignores ctx.canceled
            ended.set()
        return f"attempt {ctx.attempt}"

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=10_000) as worker:
        await gate.until_reached()
        api.clock.advance(1_000_000)

        async def second_attempt() -> bool:
            api.clock.advance(500)
            return isinstance(await api.status(api.app, run_id), Completed)

        await api.eventually(second_attempt, within_s=15)
        gate.open()
        assert await asyncio.to_thread(ended.wait, 20)
        await worker.until_idle()
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="attempt 2"))
    run = await api.get(api.app, run_id)
    assert [attempt.number for attempt in run.attempts] == [1, 2]
    assert run.failures == 1


async def test_a_completed_run_stays_what_it_is(api):
    """A run completes once (until `retry`)."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
        completed_at = (await api.get(api.app, run_id)).completed_at
        api.clock.advance(3_600_000)
        await worker.until_idle()
        assert await api.cancel(api.app, run_id) is False
    assert await api.status(api.app, run_id) == Completed(result=result)
    assert (await api.get(api.app, run_id)).completed_at == completed_at


async def test_runs_survive_the_app_that_started_them(api):
    """Durable: the run survives; another process's App sees and runs it."""
    run_id = await api.run(api.app, "scripted")
    async with api.sibling() as another:
        another.scripted("done elsewhere")
        async with another.worker() as worker:
            assert await another.result(worker, run_id) == Success(return_value="done elsewhere")
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done elsewhere"))


@pytest.mark.crash
def test_a_run_survives_the_crash_of_its_worker(scripts):
    """Durable: the run survives any crash of any process, and ends; the lost attempt is a failure, `WorkerLost`."""
    scripts.write(
        "job.py",
        """
        import os
        from action_retrier import App, SyncActionCtx, SyncActionRetrier

        app = App("sqlite:///job.db")
        retrier = SyncActionRetrier(app, initial_backoff_ms=10)

        @app.action
        def fragile(ctx: SyncActionCtx) -> int:
            if ctx.attempt == 1:
                os._exit(9)
            return ctx.attempt
        """,
    )
    scripts.write(
        "crash.py",
        """
        from job import app, fragile, retrier

        with app:
            print(retrier.run(app, fragile), flush=True)
            with app.worker() as worker:
                worker.until_idle()
        """,
    )
    scripts.write(
        "recover.py",
        """
        import sys
        from job import app, retrier

        with app, app.worker():
            print(retrier.wait(app, sys.argv[1], timeout_ms=60_000))
            print([attempt.error_type for attempt in retrier.get(app, sys.argv[1]).attempts])
        """,
    )
    process = scripts.start("crash.py")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 9, err
    lines = scripts.run("recover.py", out.strip()).stdout.splitlines()
    assert "return_value=2" in lines[0]
    assert lines[1] == "['WorkerLost', None]"


@pytest.mark.crash
def test_a_run_that_kills_its_worker_every_time_fails_in_the_end(scripts):
    """At most `max_failures + 1` executions, lost ones included: the run ends as failed, `WorkerLost`."""
    scripts.write(
        "job.py",
        """
        import os, sys
        from action_retrier import App, Completed, SyncActionRetrier

        app = App("sqlite:///job.db")
        retrier = SyncActionRetrier(app, initial_backoff_ms=10, max_failures=1)

        @app.action
        def deadly() -> None:
            with open("executions", "a") as file:
                file.write("x")
            os._exit(9)

        if __name__ == "__main__":
            if len(sys.argv) == 1:
                print(retrier.run(app, deadly))
            else:
                with app, app.worker():
                    print(retrier.wait(app, sys.argv[1], timeout_ms=60_000))
        """,
    )
    run_id = scripts.run("job.py").stdout.strip()
    outputs = []
    for _ in range(4):
        process = scripts.start("job.py", run_id)
        out, err = process.communicate(timeout=90)
        outputs.append((process.returncode, out, err))
        if process.returncode == 0:
            break
    assert [code for code, _, _ in outputs] == [9, 9, 0], outputs
    assert re.search("Failed.*WorkerLost", outputs[-1][1])
    assert (scripts.folder / "executions").read_text() == "xx"


async def test_run_not_found_for_what_never_was(api):
    """`RunNotFound`, with the id."""
    with pytest.raises(RunNotFound, match="no-such-run"):
        await api.get(api.app, "no-such-run")


async def test_a_hundred_runs_at_once_all_end(api, flavour):
    """Nothing is lost and nothing is executed twice in an ordinary crowd."""
    executed: list[int] = []

    def body(number: int) -> int:
        executed.append(number)
        if number % 7 == 0 and executed.count(number) == 1:
            raise ValueError(number)
        return number

    if flavour == "def":

        @api.app.action(name="work")
        def work(number: int) -> int:
            return body(number)
    else:

        @api.app.action(name="work")
        async def work(number: int) -> int:
            return body(number)

    run_ids = await api.run_many(api.app, [Call(work, {"number": number}) for number in range(100)])
    async with api.worker() as worker:
        for number, run_id in enumerate(run_ids):
            assert await api.result(worker, run_id, step_ms=1_000) == Success(return_value=number)
    assert sorted(executed) == sorted([*range(100), *range(0, 100, 7)])


async def test_many_callers_at_once_all_get_their_run(api):
    """Threads or tasks: each call commits a run of its own."""
    done = api.scripted("done")
    run_ids = await asyncio.gather(*(api.background(api.retrier.run, api.app, done.action) for _ in range(60)))
    assert len(set(run_ids)) == 60
    assert {run.id for run in await api.all_runs()} == set(run_ids)


async def test_two_workers_share_the_runs(api):
    """Two workers of one App take each run once."""
    done = api.scripted("done")
    run_ids = await api.run_many(api.app, [Call(done.action)] * 60)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(api.worker(concurrency=3))
        second = await stack.enter_async_context(api.worker(concurrency=3))
        await first.until_idle()
        await second.until_idle()
        for run_id in run_ids:
            assert await api.wait(api.app, run_id) == Success(return_value="done")
    assert done.executions == 60


async def test_a_canceled_result_carries_nothing_else(api):
    """`Canceled.type == "canceled"`."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    await api.cancel(api.app, run_id)
    run = await api.get(api.app, run_id)
    assert (run.state, run.result, run.completed_at) == ("canceled", Canceled(), datetime(2030, 1, 1, 12, tzinfo=UTC))
