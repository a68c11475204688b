"""`run_until_idle` works off what is due, and moves the clock of the test to what is not."""

import asyncio
import contextlib
import sqlite3
from datetime import timedelta

import pytest
from sqlalchemy import create_engine

from action_retrier import ActionCtx, ActionRetrier, App, InvalidContext, MutationCtx, Success, SyncActionRetrier
from action_retrier.testing import ManualClock, NeverIdle, crash_after, isolated, run_until_idle, run_until_idle_sync


@pytest.fixture
def app(system, clock):
    app = App(system.url, clock=clock)

    @app.action(name="flaky", initial_backoff_ms=60_000, jitter=0)
    async def flaky(ctx: ActionCtx, failures: int) -> str:
        if ctx.attempt <= failures:
            raise ConnectionError("not yet")
        return "done"

    @app.mutation(name="record")
    def record(ctx: MutationCtx, run_id: str, context: int) -> None:
        system.write_note(ctx.db, run_id)
        if len(calls := app.calls) < context:
            calls.append(run_id)
            raise ValueError("not this time")

    app.calls = []
    with app:
        yield app


def test_what_is_due_is_done_and_what_backs_off_waits(app):
    retrier = SyncActionRetrier(app)
    done, flaky = (retrier.run(app, "flaky", {"failures": failures}) for failures in (0, 1))

    ended = run_until_idle_sync(app)

    assert [(run.id, run.state) for run in ended] == [(done, "succeeded")]
    assert retrier.get(app, flaky).failures == 1
    assert run_until_idle_sync(app) == []


async def test_time_jumps_from_one_due_instant_to_the_next(app, clock):
    """The run ends as if it had been waited for: 60, 120 and 240 s of backoff."""
    began = clock.now()
    run_id = await ActionRetrier(app).run(app, "flaky", {"failures": 3})

    (run,) = await run_until_idle(app, jump=True)

    assert (run.id, run.result) == (run_id, Success("done"))
    assert clock.now() - began == timedelta(seconds=420)
    assert [attempt.delay_ms for attempt in run.attempts] == [60_000, 120_000, 240_000, None]


def test_scheduled_runs_end_in_their_order(app):
    retrier = SyncActionRetrier(app)
    late, early = (retrier.run_after(app, after, "flaky", {"failures": 0}) for after in (86_400_000, 1_000))

    runs = {run.id: run for run in run_until_idle_sync(app, jump=True)}

    assert runs[late].completed_at - runs[early].completed_at == timedelta(days=1, seconds=-1)


def test_a_callback_that_raises_is_called_until_it_commits(app, system):
    run_id = SyncActionRetrier(app).run(app, "flaky", {"failures": 0}, on_complete="record", context=3)

    run_until_idle_sync(app, jump=True)

    assert (app.calls, system.notes()) == ([run_id] * 3, [run_id])


def test_a_run_past_its_deadline_has_failed(app):
    SyncActionRetrier(app).run(app, "flaky", {"failures": 9}, deadline_ms=90_000)

    (run,) = run_until_idle_sync(app, jump=True)

    assert (run.state, len(run.attempts)) == ("failed", 2)


def test_what_no_worker_knows_is_left_alone(app):
    run_id = SyncActionRetrier(app).run(app, "somewhere:else")

    assert run_until_idle_sync(app, jump=True) == []
    assert SyncActionRetrier(app).get(app, run_id).blocked_by == "somewhere:else"


def test_a_run_that_retries_for_ever_is_an_error_that_names_it(app):
    run_id = SyncActionRetrier(app).run(app, "flaky", {"failures": 10**6}, max_failures=10**6, max_backoff_ms=60_000)

    with pytest.raises(
        NeverIdle,
        match=rf"after 5 jumps .* flaky is pending \(run {run_id}, 6 attempts\), the last error ConnectionError: not yet",
    ):
        run_until_idle_sync(app, jump=True, max_jumps=5)


def test_a_callback_that_always_raises_is_an_error_that_names_it(app):
    run_id = SyncActionRetrier(app).run(app, "flaky", {"failures": 0}, on_complete="record", context=10**6)

    told = rf"callback record is pending \(run {run_id}, \d tries\), the last error ValueError: not this time"
    with pytest.raises(NeverIdle, match=rf"after 5 jumps .*: {told}"):
        run_until_idle_sync(app, jump=True, max_jumps=5)


def test_it_is_refused_inside_a_transaction(app):
    """On SQLite its worker would wait for the transaction for ever."""
    with pytest.raises(InvalidContext, match="inside an open transaction .*; leave its block first"), app.transaction():
        run_until_idle_sync(app)


async def test_it_is_refused_inside_an_async_tests_transaction(app):
    with pytest.raises(InvalidContext, match="inside an open transaction .*; leave its block first"), app.transaction():
        await run_until_idle(app)


@pytest.mark.sqlite(reason="there a writer waits for a writer")
def test_a_transaction_of_the_tests_own_does_not_make_it_wait_for_ever(app, system):
    SyncActionRetrier(app).run(app, "flaky", {"failures": 0})
    with contextlib.closing(sqlite3.connect(system.path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(NeverIdle, match=r"could not begin within timeout_s=0\.2 s .*a transaction that stays open"):
            run_until_idle_sync(app, timeout_s=0.2)

    assert len(run_until_idle_sync(app)) == 1


def test_a_retrier_is_no_app(app, tmp_path):
    for use in (run_until_idle_sync, lambda retrier: isolated(retrier, f"sqlite:///{tmp_path}/o.db").__enter__()):
        with pytest.raises(TypeError, match="pass the App, not .*: a retrier follows the App that it was made of"):
            use(SyncActionRetrier(app))


def test_an_action_that_does_not_return_is_an_error_that_names_it(app):
    @app.action(name="stuck")
    async def stuck(ctx: ActionCtx) -> None:
        while True:
            await ctx_event.wait()

    ctx_event = asyncio.Event()
    run_id = SyncActionRetrier(app).run(app, "stuck", max_failures=0)

    with pytest.raises(NeverIdle, match=rf"not within timeout_s=0\.1 s .* stuck is running \(run {run_id}"):
        run_until_idle_sync(app, timeout_s=0.1)


def test_only_a_manual_clock_can_jump(tmp_path):
    app = App(f"sqlite:///{tmp_path}/real.db")
    with app, pytest.raises(ValueError, match="ManualClock"):
        run_until_idle_sync(app, jump=True)


def test_only_the_queues_that_are_named_are_worked_off(app):
    retrier = SyncActionRetrier(app)
    here, _there = (retrier.run(app, "flaky", {"failures": 0}, queue=queue) for queue in ("here", "there"))

    assert [run.id for run in run_until_idle_sync(app, queues=["here"])] == [here]


def test_time_does_not_move_for_queues_that_are_not_named(app, clock):
    """Others' deadlines, and what is scheduled there, are left to them."""
    retrier = SyncActionRetrier(app)
    began = clock.now()
    there = retrier.run(app, "flaky", {"failures": 0}, queue="there", deadline_ms=90_000)
    later = retrier.run_after(app, 30_000, "flaky", {"failures": 0}, queue="there")
    here = retrier.run(app, "flaky", {"failures": 1}, queue="here", deadline_ms=600_000)

    assert [run.id for run in run_until_idle_sync(app, queues=["here"], jump=True)] == [here]
    assert clock.now() - began == timedelta(minutes=1)
    assert [retrier.get(app, run_id).state for run_id in (there, later)] == ["pending", "pending"]


def test_what_a_dead_worker_has_left_in_the_queues_that_are_named_is_waited_for(app):
    retrier = SyncActionRetrier(app)
    run_id = retrier.run(app, "flaky", {"failures": 0}, queue="here")
    with crash_after(app, "claim"):
        run_until_idle_sync(app, queues=["here"])

    (run,) = run_until_idle_sync(app, queues=["here"], jump=True)

    assert (run.id, [attempt.delay_ms for attempt in run.attempts]) == (run_id, [60_000, None])


def test_runs_that_retention_removes_meanwhile_have_ended_as_well(app):
    retrier = SyncActionRetrier(app)
    early = retrier.run(app, "flaky", {"failures": 0})
    late = retrier.run_after(app, 60 * 86_400_000, "flaky", {"failures": 1})

    ended = run_until_idle_sync(app, jump=True)

    assert [(run.id, run.state) for run in ended] == [(early, "succeeded"), (late, "succeeded")]
    assert [run.id for run in retrier.list(app).runs] == [late]
    assert run_until_idle_sync(app, jump=True) == []


def test_a_retried_run_has_ended_again(app):
    retrier = SyncActionRetrier(app)
    run_id = retrier.run(app, "flaky", {"failures": 1}, max_failures=0)
    (first,) = run_until_idle_sync(app)
    app._engine.clock.advance(1)
    retrier.retry(app, run_id)

    (again,) = run_until_idle_sync(app)

    assert (first.state, again.id, again.state) == ("failed", run_id, "succeeded")


# An App that is made at import.


def test_an_app_works_elsewhere_inside_the_block(app, tmp_path):
    """Its functions and its retriers stay, and what it works on is restored."""
    retrier, other = SyncActionRetrier(app), ManualClock()
    app.__exit__(None, None, None)

    with isolated(app, f"sqlite:///{tmp_path}/other.db", clock=other) as lent:
        assert lent is app
        run_id = retrier.run(app, "flaky", {"failures": 1})
        run_until_idle_sync(app, jump=True)
        assert retrier.get(app, run_id).state == "succeeded"
        assert other.now() - ManualClock().now() == timedelta(minutes=1)

    with app:
        assert retrier.list(app).runs == []


def test_what_an_open_app_holds_is_not_taken_from_it(app, tmp_path):
    before = app._engine
    with (
        pytest.raises(RuntimeError, match="is open: leave its `with` block"),
        isolated(app, f"sqlite:///{tmp_path}/o.db"),
    ):
        pass
    assert app._engine is before


def test_an_app_is_restored_after_an_error(app, tmp_path):
    app.__exit__(None, None, None)
    before = app._engine
    with pytest.raises(ZeroDivisionError), isolated(app, f"sqlite:///{tmp_path}/other.db"):
        raise ZeroDivisionError
    assert app._engine is before


def test_a_database_that_cannot_serve_the_apps_mutations_is_refused(app, tmp_path):
    """It is told where it can be mended, and not when a callback fails."""
    app.__exit__(None, None, None)

    @app.mutation(name="of_the_other_colour")
    async def of_the_other_colour(ctx: MutationCtx) -> None: ...

    with pytest.raises(ValueError, match="of a colour that this database cannot serve"):
        isolated(app, create_engine(f"sqlite:///{tmp_path}/other.db")).__enter__()
