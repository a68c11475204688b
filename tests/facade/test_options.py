"""Options: their defaults, which of several counts, what each does, and what is refused."""

import math
import re
import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from action_retrier import (
    ActionCtx,
    ActionRetrier,
    App,
    Call,
    Completed,
    Failed,
    IdempotencyConflict,
    InProgress,
    RetryAfter,
    Success,
    SyncActionCtx,
    SyncActionRetrier,
)

from ..stores import one_colour, whatever_the_database

DEFAULTS: dict[str, Any] = {
    "initial_backoff_ms": 250,
    "base": 2,
    "max_failures": 4,
    "max_backoff_ms": None,
    "jitter": 0.5,
    "attempt_timeout_ms": None,
    "deadline_ms": None,
}
YEAR_MS = 365 * 24 * 3_600_000


def option(run: Any, name: str) -> Any:
    """Read one option that is frozen into *run*."""
    if name in {"queue", "priority"}:
        return getattr(run, name)
    return run.options[name] if isinstance(run.options, dict) else getattr(run.options, name)


def delays(run: Any) -> list[float]:
    """The delay that followed each failed attempt."""
    return [attempt.delay_ms for attempt in run.attempts if attempt.delay_ms is not None]


def _do_nothing() -> None: ...


# -- defaults and precedence -------------------------------------------------------------------------------------------


async def test_the_defaults_are_the_documented_ones(api):
    """The table's column of defaults."""
    done = api.scripted("done")
    run = await api.get(api.app, await api.run(api.app, done.action))
    assert {name: option(run, name) for name in DEFAULTS} == DEFAULTS
    assert (run.priority, run.queue) == (0, "default")


OTHERS = [
    ("initial_backoff_ms", 1_000, 2_000, 3_000),
    ("base", 3, 1.5, 10),
    ("max_failures", 1, 2, 0),
    ("max_backoff_ms", 10_000, 20_000, 30_000),
    ("jitter", 0.1, 0.2, 0),
    ("attempt_timeout_ms", 1_000, 2_000, 3_000),
    ("deadline_ms", 100_000, 200_000, 300_000),
    ("priority", 1, 2, 3),
    ("queue", "a", "b", "c"),
]


@whatever_the_database
@pytest.mark.parametrize(("name", "of_retrier", "of_action", "of_call"), OTHERS)
async def test_a_call_wins_over_an_action_over_a_retrier(api, name, of_retrier, of_action, of_call):
    """Options: per call > per action > per retrier > default."""
    api.retrier = api.new_retrier(**{name: of_retrier})
    plain = api.scripted("done", name="plain")
    special = api.scripted("done", name="special", **{name: of_action})

    async def effective(action: Any, **options: Any) -> Any:
        return option(await api.get(api.app, await api.run(api.app, action, **options)), name)

    assert await effective(plain.action) == of_retrier
    assert await effective(special.action) == of_action
    assert await effective(special.action, **{name: of_call}) == of_call
    assert await effective(plain.action, **{name: of_call}) == of_call


async def test_each_option_takes_precedence_on_its_own(api):
    """... each field on its own."""
    api.retrier = api.new_retrier(initial_backoff_ms=1, base=3, max_failures=9)
    special = api.scripted("done", base=5, max_failures=8)
    run = await api.get(api.app, await api.run(api.app, special.action, max_failures=7))
    assert (option(run, "initial_backoff_ms"), option(run, "base"), option(run, "max_failures")) == (1, 5, 7)
    assert option(run, "jitter") == 0.5


@pytest.mark.parametrize("name", ["max_backoff_ms", "attempt_timeout_ms", "deadline_ms"])
async def test_none_given_for_a_call_switches_a_limit_off(api, name):
    """`None` is a value like others: a call can lift the limit of its action."""
    special = api.scripted("done", **{name: 5_000})
    run = await api.get(api.app, await api.run(api.app, special.action, **{name: None}))
    assert option(run, name) is None


async def test_an_actions_policy_counts_when_it_is_started_by_name(api):
    """A registered name means the registered action, its policy included."""
    api.scripted("done", name="special", max_failures=1)
    run = await api.get(api.app, await api.run(api.app, "special"))
    assert option(run, "max_failures") == 1


async def test_options_are_frozen_into_the_run(api):
    """... frozen into the run when it is started: a later deployment's policy does not change it."""
    api.scripted("done", name="job", max_failures=1, initial_backoff_ms=1_000, jitter=0)
    run_id = await api.run(api.app, "job")

    async with api.sibling() as later:
        broken = later.scripted(ValueError("no"), name="job", max_failures=10, initial_backoff_ms=7, jitter=0)
        async with later.worker() as worker:
            assert isinstance(await later.result(worker, run_id), Failed)
    assert broken.executions == 2
    assert delays(await api.get(api.app, run_id)) == [1_000]


async def test_all_ways_to_start_take_the_options(api):
    """`Call` takes everything `run` takes after `ctx`; so do `run_at` and `run_after`."""
    done = api.scripted("done")
    runs = [
        await api.run(api.app, done.action, None, max_failures=7),
        await api.run_at(api.app, api.clock.now(), done.action, None, max_failures=7),
        await api.run_after(api.app, 5, done.action, None, max_failures=7),
        *await api.run_many(api.app, [Call(done.action, None, max_failures=7), Call(done.action, max_failures=7)]),
    ]
    assert [option(await api.get(api.app, run), "max_failures") for run in runs] == [7] * 5


# -- max_failures ------------------------------------------------------------------------------------------------------


@one_colour
@pytest.mark.parametrize("max_failures", [0, 1, 2, 6])
async def test_a_failure_is_retried_max_failures_times(api, flavour, max_failures):
    """How many times a failure is retried: at most `max_failures + 1` executions. 0 = no retry."""
    broken = api.scripted(ValueError("no"), flavour=flavour)
    run_id = await api.run(api.app, broken.action, max_failures=max_failures)
    async with api.worker() as worker:
        assert isinstance(await api.result(worker, run_id), Failed)
        api.clock.advance(24 * 3_600_000)
        await worker.until_idle()
    assert broken.executions == max_failures + 1
    assert (await api.get(api.app, run_id)).failures == max_failures + 1


async def test_by_default_an_action_is_retried_four_times(api):
    """`max_failures` | 4."""
    flaky = api.scripted(*[ValueError("no")] * 4, "at last")
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="at last")
    assert flaky.executions == 5


# -- backoff -----------------------------------------------------------------------------------------------------------


@one_colour
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [250, 500, 1_000, 2_000]),
        ({"initial_backoff_ms": 10_000, "base": 10}, [10_000, 100_000, 1_000_000, 10_000_000]),
        ({"initial_backoff_ms": 125, "base": 2.71, "max_failures": 3}, [125, 338.75, 918.0125]),
        ({"base": 1}, [250, 250, 250, 250]),
        ({"max_backoff_ms": 600}, [250, 500, 600, 600]),
        ({"max_backoff_ms": 100}, [100, 100, 100, 100]),
        ({"initial_backoff_ms": 0}, [0, 0, 0, 0]),
        ({"max_failures": 0}, []),
    ],
)
async def test_the_nominal_delay_is_exponential_and_bounded(api, options, expected):
    """`min(max_backoff_ms, initial_backoff_ms * base ** (k - 1))`, k = 1, 2, ..."""
    broken = api.scripted(ValueError("no"))
    run_id = await api.run(api.app, broken.action, jitter=0, **options)
    async with api.worker() as worker:
        assert isinstance(await api.result(worker, run_id, step_ms=10_000_000), Failed)
    assert delays(await api.get(api.app, run_id)) == pytest.approx(expected, abs=1)


async def test_a_retry_begins_at_its_due_time_and_not_before(api):
    """`initial_backoff_ms`: nominal delay before the first retry."""
    flaky = api.scripted(ValueError("no"), "done", jitter=0)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        await worker.until_idle()
        run = await api.get(api.app, run_id)
        assert (run.state, run.failures) == ("pending", 1)
        assert run.due_at == api.clock.now() + timedelta(milliseconds=250)
        api.clock.advance(249)
        await worker.until_idle()
        assert flaky.executions == 1
        api.clock.advance(1)
        await worker.until_idle()
        assert flaky.executions == 2


async def test_the_delay_is_counted_from_the_end_of_the_failed_attempt(api, gate):
    """... counted from the end of the failed attempt."""

    @api.app.action(name="slow", jitter=0, initial_backoff_ms=1_000)
    def slow() -> None:
        gate.wait()
        raise ValueError

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(60_000)
        gate.open()
        await worker.until_idle()
        run = await api.get(api.app, run_id)
    assert run.attempts[0].ended_at == api.clock.now()
    assert run.due_at == api.clock.now() + timedelta(milliseconds=1_000)


@one_colour
@pytest.mark.parametrize("jitter", [0.5, 0.1, 1])
async def test_jitter_multiplies_each_delay_by_a_random_factor(api, jitter):
    """Each delay is multiplied by a uniform random factor in [1 - jitter, 1 + jitter)."""
    broken = api.scripted(ValueError("no"), initial_backoff_ms=100_000, max_failures=1, jitter=jitter)
    runs = await api.run_many(api.app, [Call(broken.action)] * 60)
    async with api.worker() as worker:
        await worker.until_idle()
    factors = [delays(await api.get(api.app, run))[0] / 100_000 for run in runs]
    assert 1 - jitter <= min(factors)
    assert max(factors) <= 1 + jitter
    assert min(factors) < 1 - jitter / 3, "60 draws reach the lower part"
    assert max(factors) > 1 + jitter / 3, "60 draws reach the upper part"


async def test_jitter_is_not_lost_at_the_bound(api):
    """`max_backoff_ms`: upper bound of the *nominal* delay; the jitter comes after."""
    broken = api.scripted(ValueError("no"), initial_backoff_ms=100_000, max_backoff_ms=1_000, max_failures=1)
    runs = await api.run_many(api.app, [Call(broken.action)] * 40)
    async with api.worker() as worker:
        await worker.until_idle()
    observed = [delays(await api.get(api.app, run))[0] for run in runs]
    assert 500 <= min(observed) < 900
    assert 1_100 < max(observed) <= 1_500


async def test_without_jitter_the_delay_is_exact(api):
    """[1 - 0, 1 + 0)."""
    broken = api.scripted(ValueError("no"), initial_backoff_ms=12_345, max_failures=1, jitter=0)
    runs = await api.run_many(api.app, [Call(broken.action)] * 5)
    async with api.worker() as worker:
        await worker.until_idle()
    assert [delays(await api.get(api.app, run)) for run in runs] == [[12_345]] * 5


@one_colour
@pytest.mark.parametrize(
    "options",
    [
        {"initial_backoff_ms": 10**15},
        {"initial_backoff_ms": 10**30},
        {"initial_backoff_ms": 1, "base": 10**300},
        {"initial_backoff_ms": 1, "base": 1e308},
    ],
)
@pytest.mark.parametrize("bound", [None, 5_000])
async def test_overflow_is_the_bound_and_never_an_exception(api, options, bound):
    """Overflow is the bound (one year if none is set), never an exception."""
    broken = api.scripted(ValueError("no"), jitter=0, max_failures=4, max_backoff_ms=bound, **options)
    run_id = await api.run(api.app, broken.action)
    limit = bound or YEAR_MS
    async with api.worker() as worker:
        assert isinstance(await api.result(worker, run_id, step_ms=limit + 1), Failed)
    observed = delays(await api.get(api.app, run_id))
    assert len(observed) == 4
    assert max(observed) == pytest.approx(limit, rel=0.01)


# -- time limits -------------------------------------------------------------------------------------------------------


async def test_an_async_attempt_past_its_time_limit_is_a_failure(async_api, gate):
    """`attempt_timeout_ms`: one attempt's time limit; past it the attempt counts as a failure."""
    api, ended = async_api, []

    @api.app.action(name="slow", attempt_timeout_ms=5_000, max_failures=0)
    async def slow(ctx: ActionCtx) -> None:
        try:
            await gate.wait_async()
        finally:
            ended.append((ctx.canceled, bool(ctx.stop_reason)))

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(4_999)
        assert await api.status(api.app, run_id) == InProgress()
        api.clock.advance(1)
        await worker.until_idle()
    status = await api.status(api.app, run_id)
    assert isinstance(status.result, Failed)
    assert status.result.error_type == "TimedOut"
    assert ended == [(True, True)]


async def test_a_thread_past_its_time_limit_sees_it_in_canceled(api, gate):
    """`canceled`: true whenever this attempt should stop: ... timed out; with `stop_reason`."""
    seen = []

    @api.app.action(name="slow", attempt_timeout_ms=5_000, max_failures=0)
    def slow(ctx: SyncActionCtx) -> str:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(2_000):
            if ctx.canceled:
                break
            pause.wait(0.005)
        seen.append((ctx.canceled, str(ctx.stop_reason)))
        return "too late"

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(5_000)
        result = await api.result(worker, run_id)
        await api.eventually(lambda: seen)
    assert (type(result), result.error_type) == (Failed, "TimedOut")
    assert seen[0][0]
    assert re.search("time", seen[0][1], re.IGNORECASE)


async def test_a_timed_out_attempt_is_retried(api, gate):
    """... counts as a failure: the next attempt may succeed."""

    @api.app.action(name="slow", attempt_timeout_ms=5_000)
    async def slow(ctx: ActionCtx) -> str:
        if ctx.attempt == 1:
            await gate.wait_async()
        return f"attempt {ctx.attempt}"

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(5_000)
        assert await api.result(worker, run_id) == Success(return_value="attempt 2")
    run = await api.get(api.app, run_id)
    assert run.failures == 1
    assert [attempt.error_type for attempt in run.attempts] == ["TimedOut", None]


async def test_an_attempt_within_its_time_limit_is_left_alone(api, gate):
    """Each attempt has a limit of its own."""

    @api.app.action(name="slow", attempt_timeout_ms=5_000)
    def slow() -> str:
        gate.wait()
        return "in time"

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(4_000)
        gate.open()
        assert await api.result(worker, run_id) == Success(return_value="in time")


async def test_past_the_deadline_no_new_attempt_begins(api):
    """`deadline_ms`: past it no new attempt begins; the run fails with its last error."""
    broken = api.scripted(ValueError("the last error"), initial_backoff_ms=1_000, jitter=0, base=1, max_failures=100)
    run_id = await api.run(api.app, broken.action, deadline_ms=2_500)
    async with api.worker() as worker:
        result = await api.result(worker, run_id, step_ms=500)
    assert result == Failed(error="the last error", error_type="ValueError")
    assert broken.executions == 3


async def test_a_failure_whose_retry_would_come_after_the_deadline_is_the_last(async_api, gate):
    """It is counted from when the attempt ends, not from when it was claimed."""
    api = async_api

    @api.app.action(name="slow", deadline_ms=60_000, initial_backoff_ms=40_000, jitter=0)
    async def slow() -> None:
        await gate.wait_async()
        raise ValueError("too late")

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(30_000)
        gate.open()
        await worker.until_idle()
        result = (await api.get(api.app, run_id)).result  # at once, with no time passing
    assert (type(result), result.error_type) == (Failed, "ValueError")


async def test_a_run_that_no_worker_took_before_its_deadline_fails(api):
    """... past it no new attempt begins, not even the first."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, deadline_ms=2_500)
    api.clock.advance(2_501)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert (type(result), result.error_type) == (Failed, "DeadlineExceeded")
    assert result.error
    assert done.executions == 0


async def test_the_deadline_is_counted_from_the_first_due_time(api):
    """... counted from the first due time."""
    done = api.scripted("done")
    run_id = await api.run_after(api.app, 10_000, done.action, deadline_ms=2_500)
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(12_000)
        assert await api.result(worker, run_id) == Success(return_value="done")


async def test_an_attempt_that_runs_into_the_deadline_is_stopped(async_api, gate):
    """... and a running one is stopped."""
    api, ended = async_api, []

    @api.app.action(name="slow", deadline_ms=2_500)
    async def slow(ctx: ActionCtx) -> None:
        try:
            await gate.wait_async()
        finally:
            ended.append(ctx.canceled)

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(2_501)
        result = await api.result(worker, run_id)
    assert (type(result), result.error_type) == (Failed, "DeadlineExceeded")
    assert ended == [True]


async def test_a_thread_that_runs_into_the_deadline_sees_it_in_canceled(api, gate):
    """... and a running one is stopped."""
    seen = []

    @api.app.action(name="slow", deadline_ms=2_500)
    def slow(ctx: SyncActionCtx) -> None:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(2_000):
            if ctx.canceled:
                seen.append(bool(ctx.stop_reason))
                return
            pause.wait(0.005)

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(2_501)
        result = await api.result(worker, run_id)
        await api.eventually(lambda: seen)
    assert (type(result), result.error_type) == (Failed, "DeadlineExceeded")
    assert seen == [True]


async def test_a_success_before_the_deadline_is_a_success(api):
    """The deadline is no concern of a run that ends in time."""
    done = api.scripted(ValueError("once"), "done", initial_backoff_ms=100, jitter=0)
    run_id = await api.run(api.app, done.action, deadline_ms=60_000)
    async with api.worker() as worker:
        assert await api.result(worker, run_id, step_ms=100) == Success(return_value="done")


# -- idempotency_key ---------------------------------------------------------------------------------------------------


async def test_a_second_run_with_a_key_returns_the_first_ones_id(api):
    """A second `run` with it returns the first one's id."""
    done = api.scripted("done")
    first = await api.run(api.app, done.action, idempotency_key="order-7")
    assert await api.run(api.app, done.action, idempotency_key="order-7") == first
    assert await api.run_after(api.app, 9_000, done.action, idempotency_key="order-7") == first
    assert await api.run_many(api.app, [Call(done.action, idempotency_key="order-7")]) == [first]
    assert len(await api.all_runs()) == 1
    async with api.worker() as worker:
        await worker.until_idle()
    assert done.executions == 1


@pytest.mark.parametrize("state", ["succeeded", "failed", "canceled", "running"])
async def test_a_key_is_held_whatever_the_state(api, gate, state):
    """... whatever its state, until that run is cleaned up."""

    @api.app.action(name="job", max_failures=0)
    def job() -> None:
        if state == "running":
            gate.wait()
        if state == "failed":
            raise ValueError

    first = await api.run(api.app, job, idempotency_key="k")
    if state == "canceled":
        await api.cancel(api.app, first)
    async with api.worker() as worker:
        if state == "running":
            await gate.until_reached()
        else:
            await worker.until_idle()
        assert (await api.get(api.app, first)).state == state
        assert await api.run(api.app, job, idempotency_key="k") == first
        gate.open()


async def test_a_key_is_free_again_after_cleanup(api):
    """... until that run is cleaned up."""
    done = api.scripted("done")
    first = await api.run(api.app, done.action, idempotency_key="k")
    async with api.worker() as worker:
        await worker.until_idle()
    await api.cleanup(api.app, first)
    second = await api.run(api.app, done.action, idempotency_key="k")
    assert second != first


async def test_a_key_with_other_arguments_is_a_conflict(api):
    """With other args `IdempotencyConflict`, nothing stored."""

    @api.app.action(name="charge")
    def charge(order_id: int, *, note: str = "") -> None: ...

    first = await api.run(api.app, charge, {"order_id": 7}, idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match="k"):
        await api.run(api.app, charge, {"order_id": 8}, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        await api.run_many(api.app, [Call(charge, {"order_id": 1}), Call(charge, {"order_id": 8}, idempotency_key="k")])
    assert [run.id for run in await api.all_runs()] == [first]
    assert await api.run(api.app, charge, {"order_id": 7}, idempotency_key="k") == first


async def test_the_order_of_arguments_is_no_conflict(api):
    """The same args are the same args, in whatever order the mapping holds them."""

    @api.app.action(name="charge")
    def charge(order_id: int, note: str) -> None: ...

    first = await api.run(api.app, charge, {"order_id": 7, "note": "x"}, idempotency_key="k")
    assert await api.run(api.app, charge, {"note": "x", "order_id": 7}, idempotency_key="k") == first


async def test_a_key_belongs_to_one_action(api):
    """Unique per namespace and action."""
    one, two = api.scripted("done", name="one"), api.scripted("done", name="two")
    first = await api.run(api.app, one.action, idempotency_key="k")
    assert await api.run(api.app, two.action, idempotency_key="k") != first


async def test_two_calls_with_one_key_in_one_run_many_are_one_run(api):
    """The key is unique within a single call, too."""
    done = api.scripted("done")
    first, second = await api.run_many(api.app, [Call(done.action, idempotency_key="k")] * 2)
    assert first == second
    assert len(await api.all_runs()) == 1


async def test_a_hundred_concurrent_starts_with_one_key_are_one_run(api):
    """Unique, also for those who ask at the same time."""
    done = api.scripted("done")
    run = api.retrier.run
    tasks = [api.background(run, api.app, done.action, idempotency_key="k") for _ in range(100)]
    assert len({await task for task in tasks}) == 1
    assert len(await api.all_runs()) == 1


@pytest.mark.parametrize("key", ["a", "k" * 255, "ключ " * 51, "'; DROP TABLE notes; --"])
async def test_a_key_has_one_to_255_characters(api, key):
    """1 to 255 characters."""
    done = api.scripted("done")
    first = await api.run(api.app, done.action, idempotency_key=key)
    assert await api.run(api.app, done.action, idempotency_key=key) == first


@whatever_the_database
@pytest.mark.parametrize("key", ["", "k" * 256, 7, b"k", True, "a\0b", "\ud800"], ids=ascii)
async def test_any_other_key_is_refused(api, key):
    """1 to 255 characters, else an error that names the option; nothing is stored."""
    done = api.scripted("done")
    with pytest.raises((ValueError, TypeError), match="idempotency_key"):
        await api.run(api.app, done.action, idempotency_key=key)
    assert await api.all_runs() == []


# -- priority and queue ------------------------------------------------------------------------------------------------


async def test_a_larger_priority_starts_sooner_among_due_runs(api):
    """`priority`: larger starts sooner among due runs."""
    started = []

    @api.app.action(name="job")
    def job(name: str) -> None:
        started.append(name)

    await api.run(api.app, job, {"name": "normal"})
    await api.run(api.app, job, {"name": "high"}, priority=5)
    await api.run(api.app, job, {"name": "highest"}, priority=50)
    await api.run_after(api.app, 1_000, job, {"name": "not due"}, priority=500)
    async with api.worker(concurrency=1) as worker:
        await worker.until_idle()
    assert started == ["highest", "high", "normal"]


async def test_among_equals_the_earlier_due_time_starts_sooner(api):
    """By priority, then due time."""
    started = []

    @api.app.action(name="job")
    def job(name: str) -> None:
        started.append(name)

    await api.run_after(api.app, 2_000, job, {"name": "second"})
    await api.run_after(api.app, 1_000, job, {"name": "first"})
    await api.run_after(api.app, 3_000, job, {"name": "third"})
    api.clock.advance(10_000)
    async with api.worker(concurrency=1) as worker:
        await worker.until_idle()
    assert started == ["first", "second", "third"]


# -- validation --------------------------------------------------------------------------------------------------------

NAN, INFINITY = math.nan, math.inf
NEVER_A_NUMBER = ["5", True, False, [], {}, object(), b"1", 1j]
REFUSED = [
    *(("initial_backoff_ms", value) for value in (-1, -0.5, NAN, INFINITY, -INFINITY, None, *NEVER_A_NUMBER)),
    *(("base", value) for value in (-1, -0.5, NAN, INFINITY, None, *NEVER_A_NUMBER)),
    *(("max_failures", value) for value in (-1, 1.5, NAN, INFINITY, None, Decimal("1.5"), *NEVER_A_NUMBER)),
    *(("max_backoff_ms", value) for value in (-1, NAN, INFINITY, *NEVER_A_NUMBER)),
    *(("jitter", value) for value in (-0.1, NAN, INFINITY, None, *NEVER_A_NUMBER)),
    *(("attempt_timeout_ms", value) for value in (-1, NAN, INFINITY, *NEVER_A_NUMBER)),
    *(("deadline_ms", value) for value in (-1, NAN, INFINITY, *NEVER_A_NUMBER)),
    *(("priority", value) for value in (1.5, NAN, INFINITY, None, *NEVER_A_NUMBER)),
    *(("queue", value) for value in (5, None, True, b"default", ["default"])),
    *(("max_retries", value) for value in (3,)),
    *(("initialBackoffMs", value) for value in (3,)),
]
IDS = [f"{name}={type(value).__name__ if value.__class__ is object else value!r}" for name, value in REFUSED]
refused = pytest.mark.parametrize(("name", "value"), REFUSED, ids=IDS)
WRONG = (ValueError, TypeError)


@refused
def test_a_wrong_option_is_refused_when_a_retrier_is_made(name, value, database, colour):
    """Wrong types, negative, NaN or infinite values, unknown names: an error naming the option, at construction."""
    app = App(f"sqlite:///{database}")
    with pytest.raises(WRONG, match=name):
        (ActionRetrier if colour == "async" else SyncActionRetrier)(app, **{name: value})


@refused
def test_a_wrong_option_is_refused_when_an_action_is_registered(name, value, database):
    """... an action's policy is checked at once, too."""
    app = App(f"sqlite:///{database}")
    with pytest.raises(WRONG, match=name):
        app.action(name="job", **{name: value})(_do_nothing)


@whatever_the_database
@refused
async def test_a_wrong_option_is_refused_when_a_run_is_started(api, name, value):
    """... or at `run`, nothing stored."""
    done = api.scripted("done")
    with pytest.raises(WRONG, match=name):
        await api.run(api.app, done.action, None, **{name: value})
    with pytest.raises(WRONG, match=name):
        await api.run_after(api.app, 10, done.action, None, **{name: value})

    async def run_many() -> None:
        await api.run_many(api.app, [Call(done.action), Call(done.action, **{name: value})])

    with pytest.raises(WRONG, match=name):
        await run_many()
    assert await api.all_runs() == []


HUGE = [
    *("initial_backoff_ms", "base", "max_failures", "max_backoff_ms", "attempt_timeout_ms", "deadline_ms"),
    *("jitter", "priority"),
]


@one_colour
@pytest.mark.parametrize("value", [10**30, 10**400, 1e308], ids=["10**30", "10**400", "1e308"])
@pytest.mark.parametrize("name", HUGE)
async def test_a_huge_value_is_refused_by_name_or_harmless(api, name, value):
    """`ValueError` / `TypeError` naming the option, or a run that ends as any other: never an overflow later on."""
    flaky = api.scripted(ValueError("once"), ValueError("twice"), "done", max_failures=2, initial_backoff_ms=1)
    try:
        run_id = await api.run(api.app, flaky.action, **{name: value})
    except (ValueError, TypeError) as error:
        assert name in str(error)
        assert await api.all_runs() == []
        return
    step_ms = 2 * YEAR_MS if name in {"initial_backoff_ms", "base"} else 60_000
    async with api.worker() as worker:
        assert await api.result(worker, run_id, step_ms=step_ms) == Success(return_value="done")
    await api.get(api.app, run_id)


@pytest.mark.parametrize("name", ["deadline_ms", "attempt_timeout_ms", "initial_backoff_ms"])
async def test_a_run_with_a_huge_limit_can_be_retried(api, name):
    """Whatever limit was accepted at the start does no harm when the run starts afresh."""
    flaky = api.scripted(ValueError("once"), "done", max_failures=0)
    run_id = await api.run(api.app, flaky.action, **{name: 10**18})
    async with api.worker() as worker:
        assert isinstance(await api.result(worker, run_id), Failed)
        await api.retry(api.app, run_id)
        assert await api.result(worker, run_id) == Success(return_value="done")
    await api.get(api.app, run_id)


@pytest.mark.parametrize(
    ("name", "value"), [("max_failures", -1), ("base", NAN), ("jitter", -0.25), ("deadline_ms", "soon")]
)
async def test_the_error_says_the_offending_value(api, name, value):
    """Each says what was wrong, with the offending value."""
    done = api.scripted("done")
    with pytest.raises(WRONG, match=f"(?s){name}.*{re.escape(str(value))}"):
        await api.run(api.app, done.action, None, **{name: value})


@one_colour
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial_backoff_ms", 0),
        ("initial_backoff_ms", 10**12),
        ("base", 1),
        ("base", 1.0001),
        ("max_failures", 0),
        ("max_failures", 1_000_000),
        ("max_backoff_ms", 0),
        ("max_backoff_ms", None),
        ("jitter", 0),
        ("jitter", 1),
        ("attempt_timeout_ms", None),
        ("attempt_timeout_ms", 1),
        ("deadline_ms", None),
        ("deadline_ms", 1),
        ("idempotency_key", None),
        ("priority", 0),
        ("priority", 1_000_000),
        ("queue", "mail"),
    ],
)
async def test_values_at_the_edge_are_accepted(api, name, value):
    """Only what is documented as wrong is refused."""
    done = api.scripted("done")
    await api.run(api.app, done.action, None, **{name: value})


async def test_a_refused_option_inside_a_transaction_leaves_it_usable(api, note):
    """Nothing is stored, and the caller's transaction goes on."""
    done = api.scripted("done")
    async with api.transaction() as ctx:
        with pytest.raises(WRONG):
            await api.run(ctx, done.action, max_failures=-1)
        await api.call(note, ctx, "kept")
        await api.run(ctx, done.action, max_failures=1)
    assert api.notes() == ["kept"]
    assert len(await api.all_runs()) == 1


# -- retry_on and no_retry_on ------------------------------------------------------------------------------------------


@one_colour
@pytest.mark.parametrize("retry_on", [ConnectionError, (ConnectionError,), [ConnectionError, TimeoutError]])
async def test_only_what_retry_on_names_is_retried(api, flavour, retry_on):
    """`@app.action(retry_on=...)` takes exception types and judges what the action raised."""
    flaky = api.scripted(
        ConnectionResetError("1"), ConnectionError("2"), KeyError("3"), flavour=flavour, retry_on=retry_on
    )
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert result.error_type == "KeyError"
    assert flaky.executions == 3


@one_colour
@pytest.mark.parametrize("no_retry_on", [LookupError, (LookupError,), [LookupError, ZeroDivisionError]])
async def test_what_no_retry_on_names_is_not_retried(api, flavour, no_retry_on):
    """`@app.action(no_retry_on=...)`."""
    flaky = api.scripted(ValueError("1"), ValueError("2"), KeyError("3"), flavour=flavour, no_retry_on=no_retry_on)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert result.error_type == "KeyError"
    assert flaky.executions == 3


async def test_a_base_exception_is_retried_under_retry_on_that_names_it(api):
    """Any exception, `SystemExit` included, is judged."""
    flaky = api.scripted(SystemExit(3), ValueError("no"), retry_on=SystemExit)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert result.error_type == "ValueError"
    assert flaky.executions == 2


@pytest.mark.parametrize("policy", [{"retry_on": KeyError}, {"no_retry_on": BaseException}])
async def test_time_outs_are_always_retried(api, gate, policy):
    """Time-outs and lost workers are always retried."""

    @api.app.action(name="slow", attempt_timeout_ms=5_000, **policy)
    async def slow(ctx: ActionCtx) -> int:
        if ctx.attempt == 1:
            await gate.wait_async()
        return ctx.attempt

    run_id = await api.run(api.app, slow)
    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(5_000)
        assert await api.result(worker, run_id) == Success(return_value=2)


@pytest.mark.parametrize("name", ["retry_on", "no_retry_on"])
@pytest.mark.parametrize("value", ["ValueError", 5, int, (ValueError, "KeyError"), ValueError("an instance")])
def test_retry_on_and_no_retry_on_take_exception_types_only(database, name, value):
    """... takes exception types."""
    app = App(f"sqlite:///{database}")
    with pytest.raises(WRONG, match=name):
        app.action(name="job", **{name: value})(_do_nothing)


# -- RetryAfter --------------------------------------------------------------------------------------------------------


async def test_retry_after_sets_the_next_delay_itself(api, flavour):
    """`RetryAfter(delay_ms, message="")` is a failure that sets the next delay itself."""
    flaky = api.scripted(RetryAfter(100_000, "slow down"), "done", flavour=flavour, max_backoff_ms=1_000)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        await worker.until_idle()
        run = await api.get(api.app, run_id)
        assert run.failures == 1
        assert run.attempts[0].error == "slow down"
        assert 100_000 <= run.attempts[0].delay_ms <= 110_000
        api.clock.advance(99_999)
        await worker.until_idle()
        assert flaky.executions == 1
        api.clock.advance(10_001)
        await worker.until_idle()
        assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))


async def test_retry_after_is_jittered_upwards_only_by_a_tenth_at_most(api):
    """... (not capped by `max_backoff_ms`; jittered upwards only, by at most 10 %)."""
    flaky = api.scripted(RetryAfter(100_000), max_failures=1, max_backoff_ms=1_000)
    runs = await api.run_many(api.app, [Call(flaky.action)] * 40)
    async with api.worker() as worker:
        await worker.until_idle()
    observed = [delays(await api.get(api.app, run))[0] for run in runs]
    assert min(observed) >= 100_000
    assert max(observed) <= 110_000
    assert len(set(observed)) > 1


async def test_retry_after_counts_as_a_failure(api):
    """... is a failure: its number is limited like others'."""
    flaky = api.scripted(RetryAfter(1_000, "slow down"), max_failures=2)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert result.error == "slow down"
    assert flaky.executions == 3
