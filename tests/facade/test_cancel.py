"""Promise 5: cancel tells the truth."""

import asyncio
import logging
import re
import threading
from typing import Any

import pytest

from action_retrier import (
    ActionCtx,
    ActionRetrier,
    App,
    Call,
    Canceled,
    Completed,
    Failed,
    InProgress,
    RunNotFound,
    Success,
    SyncActionCtx,
)

CANCELED = Completed(result=Canceled())


async def test_a_pending_run_is_canceled_and_never_executed(api):
    """`True`: this call canceled the run, and every later `status` says canceled."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    assert await api.cancel(api.app, run_id) is True
    assert await api.status(api.app, run_id) == CANCELED
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(3_600_000)
        await worker.until_idle()
    assert await api.status(api.app, run_id) == CANCELED
    assert done.executions == 0


async def test_a_run_for_later_is_canceled(api):
    """Whether it is due does not matter."""
    done = api.scripted("done")
    run_id = await api.run_after(api.app, 60_000, done.action)
    assert await api.cancel(api.app, run_id) is True
    api.clock.advance(60_000)
    async with api.worker() as worker:
        await worker.until_idle()
    assert done.executions == 0


async def test_a_run_that_backs_off_is_canceled(api):
    """... nor whether it has failed before."""
    broken = api.scripted(ValueError("no"))
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await worker.until_idle()
        assert await api.cancel(api.app, run_id) is True
        api.clock.advance(3_600_000)
        await worker.until_idle()
    assert broken.executions == 1
    assert await api.status(api.app, run_id) == CANCELED


async def test_only_the_first_cancel_says_yes(api):
    """`False`: it had already completed: a canceled run is a completed one."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    assert [await api.cancel(api.app, run_id) for _ in range(3)] == [True, False, False]
    assert await api.status(api.app, run_id) == CANCELED


@pytest.mark.parametrize("script", ["done", ValueError("no")], ids=["succeeded", "failed"])
async def test_a_completed_run_is_unchanged(api, script):
    """`False`: it had already completed, and is unchanged."""
    action = api.scripted(script, max_failures=0)
    run_id = await api.run(api.app, action.action)
    async with api.worker() as worker:
        await worker.until_idle()
    before = await api.get(api.app, run_id)
    assert await api.cancel(api.app, run_id) is False
    assert await api.get(api.app, run_id) == before


async def test_an_unknown_run_cannot_be_canceled(api):
    """`RunNotFound`: the caller learns that there is no such run."""
    with pytest.raises(RunNotFound, match="no-such-run"):
        await api.cancel(api.app, "no-such-run")


async def test_of_many_cancels_at_once_one_says_yes(api):
    """`True`: *this call* canceled the run."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    tasks = [api.background(api.retrier.cancel, api.app, run_id) for _ in range(20)]
    assert sorted([await task for task in tasks]) == [False] * 19 + [True]


async def test_a_running_async_action_is_cancelled(async_api, gate):
    """A running async action is cancelled (`asyncio.CancelledError`)."""
    api, seen = async_api, []

    @api.app.action(name="work")
    async def work(ctx: ActionCtx) -> None:
        try:
            await gate.wait_async()
        except asyncio.CancelledError:
            seen.append((ctx.canceled, str(ctx.stop_reason)))
            raise

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        await gate.until_reached()
        assert await api.cancel(api.app, run_id) is True
        assert await api.status(api.app, run_id) == CANCELED
        await api.eventually(lambda: seen, within_s=1)
        await worker.until_idle()
    assert seen[0][0]
    assert re.search("cancel", seen[0][1], re.IGNORECASE)
    assert await api.status(api.app, run_id) == CANCELED


async def test_an_async_action_is_cancelled_in_a_sync_program_too(sync_api, gate):
    """The colour of the program does not matter to the action."""
    api, seen = sync_api, []

    @api.app.action(name="work")
    async def work() -> None:
        try:
            await gate.wait_async()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    run_id = await api.run(api.app, work)
    async with api.worker():
        await gate.until_reached()
        assert await api.cancel(api.app, run_id) is True
        await api.eventually(lambda: seen, within_s=1.5)
    assert await api.status(api.app, run_id) == CANCELED


async def test_a_thread_sees_canceled_within_a_second(api, gate):
    """... a thread sees `ctx.canceled`, best effort, within a second."""
    seen = []

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> str:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(4_000):
            if ctx.canceled:
                seen.append(str(ctx.stop_reason))
                break
            pause.wait(0.005)
        return "late"

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        await gate.until_reached()
        assert await api.cancel(api.app, run_id) is True
        await api.eventually(lambda: seen, within_s=1.5)
        await worker.until_idle()
    assert re.search("cancel", seen[0], re.IGNORECASE)
    assert await api.status(api.app, run_id) == CANCELED


async def test_the_worker_of_another_app_learns_of_a_cancel_within_a_second(api, gate):
    """... within a second, also when another process cancels."""
    seen = []

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> None:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(4_000):
            if ctx.canceled:
                seen.append("canceled")
                break
            pause.wait(0.005)

    run_id = await api.run(api.app, work)
    async with api.sibling() as other, api.worker():
        await gate.until_reached()
        assert await other.cancel(other.app, run_id) is True
        await api.eventually(lambda: seen, within_s=1.5)


@pytest.mark.postgres("only there are notifications")
async def test_a_running_async_action_is_cancelled_without_notifications(system, clock):
    """Whoever polls learns of it too."""
    app = App(f"{system.url}&notify=false", clock=clock)
    reached, cancelled = asyncio.Event(), asyncio.Event()

    @app.action(name="work")
    async def work() -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    retrier = ActionRetrier(app)
    async with app, app.worker(), asyncio.timeout(30):
        run_id = await retrier.run(app, work)
        await reached.wait()
        async with App(system.url, clock=clock) as other:
            assert await ActionRetrier(other).cancel(other, run_id)
        await cancelled.wait()


@pytest.mark.parametrize("late", ["returns", "raises"])
async def test_what_a_canceled_attempt_reports_changes_nothing(async_api, gate, late):
    """... every later `status` says canceled, whatever a still executing attempt does."""
    api = async_api

    @api.app.action(name="stubborn")
    async def stubborn() -> str:
        try:
            await gate.wait_async()
        except asyncio.CancelledError:
            if late == "raises":
                raise ValueError("late") from None
        return "late"

    run_id = await api.run(api.app, stubborn)
    async with api.worker() as worker:
        await gate.until_reached()
        assert await api.cancel(api.app, run_id) is True
        await worker.until_idle()
        api.clock.advance(3_600_000)
        await worker.until_idle()
    assert await api.status(api.app, run_id) == CANCELED


@pytest.mark.parametrize("late", ["returns", "raises"])
async def test_what_a_canceled_thread_reports_changes_nothing(api, gate, late):
    """... whatever a still executing attempt does: a thread that ignores `canceled` executes to its end."""
    executions = []

    @api.app.action(name="stubborn")
    def stubborn() -> str:
        executions.append(1)
        gate.wait()
        if late == "raises":
            raise ValueError("late")
        return "late"

    run_id = await api.run(api.app, stubborn)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        assert await api.cancel(api.app, run_id) is True
        assert await api.status(api.app, run_id) == CANCELED
        gate.open()
        await worker.until_idle()
        api.clock.advance(3_600_000)
        await worker.until_idle()
    assert await api.status(api.app, run_id) == CANCELED
    assert executions == [1]


async def test_an_action_may_cancel_its_own_run(api):
    """A run canceled by its own action is canceled, not succeeded."""
    if api.is_async:

        @api.app.action(name="work")
        async def work(ctx: ActionCtx) -> str:
            await api.retrier.cancel(ctx, ctx.run_id)
            return "too late"
    else:

        @api.app.action(name="work")
        def work(ctx: SyncActionCtx) -> str:
            assert api.retrier.cancel(ctx, ctx.run_id) is True
            return "too late"

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Canceled()


async def test_the_worker_goes_on_after_a_cancel(api, gate):
    """A cancelled action ends; its worker does not."""
    done = api.scripted("done")

    @api.app.action(name="work")
    async def work() -> None:
        await gate.wait_async()

    run_id = await api.run(api.app, work)
    async with api.worker(concurrency=1) as worker:
        await gate.until_reached()
        await api.cancel(api.app, run_id)
        other = await api.run(api.app, done.action)
        assert await api.result(worker, other) == Success(return_value="done")


# -- cancel_all --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def crowd(api: Any) -> dict[str, str]:
    """Pending runs of two actions in two queues, and one that has completed."""
    one, two = api.scripted("done", name="one"), api.scripted("done", name="two")
    completed = await api.run(api.app, one.action, queue="a")
    async with api.worker() as worker:
        await worker.until_idle()
    names = ["one in a", "one in b", "two in a", "two in b"]
    actions = {"one": one.action, "two": two.action}
    runs = await api.run_many(api.app, [Call(actions[name[:3]], queue=name[-1]) for name in names])
    return dict(zip(names, runs, strict=True)) | {"completed": completed}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"everything": True}, {"one in a", "one in b", "two in a", "two in b"}),
        ({"action": "one"}, {"one in a", "one in b"}),
        ({"queue": "b"}, {"one in b", "two in b"}),
        ({"action": "two", "queue": "a"}, {"two in a"}),
        ({"action": "three"}, set()),
        ({"queue": "c"}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "chosen",
)
async def test_cancel_all_cancels_what_its_filter_chooses(api, crowd, chosen, expected):
    """`int = await retrier.cancel_all(ctx, *, action=None, queue=None, everything=False)`."""
    assert await api.cancel_all(api.app, **chosen) == len(expected)
    statuses = {name: await api.status(api.app, run_id) for name, run_id in crowd.items()}
    assert statuses.pop("completed") == Completed(result=Success(return_value="done"))
    assert statuses == {name: CANCELED if name in expected else InProgress() for name in statuses}


async def test_cancel_all_takes_the_decorated_function(api):
    """`action`: the decorated function, or the registered name."""
    one, two = api.scripted("done", name="one"), api.scripted("done", name="two")
    first = await api.run(api.app, one.action)
    second = await api.run(api.app, two.action)
    assert await api.cancel_all(api.app, action=two.action) == 1
    assert await api.status(api.app, first) == InProgress()
    assert await api.status(api.app, second) == CANCELED


async def test_cancel_all_without_a_filter_is_refused(api, crowd):
    """(a filter, or everything=True)."""
    with pytest.raises((ValueError, TypeError), match="everything"):
        await api.cancel_all(api.app)
    assert await api.status(api.app, crowd["one in a"]) == InProgress()


async def test_cancel_all_counts_each_run_once(api, crowd):
    """It returns how many runs this call canceled."""
    assert await api.cancel_all(api.app, everything=True) == 4
    assert await api.cancel_all(api.app, everything=True) == 0


async def test_cancel_all_stops_what_executes(api, gate):
    """Bulk or not, a cancel is a cancel."""
    seen = []

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> None:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(4_000):
            if ctx.canceled:
                seen.append("canceled")
                return
            pause.wait(0.005)

    run_id = await api.run(api.app, work)
    async with api.worker():
        await gate.until_reached()
        assert await api.cancel_all(api.app, action="work") == 1
        await api.eventually(lambda: seen, within_s=1.5)
    assert await api.status(api.app, run_id) == CANCELED


async def test_cancel_all_cancels_more_than_a_page(api):
    """All means all: not only the first hundred."""
    done = api.scripted("done")
    await api.run_many(api.app, [Call(done.action)] * 1_234)
    assert await api.cancel_all(api.app, action="scripted") == 1_234
    assert (await api.list(api.app, state="pending")).runs == []


async def test_a_cancel_during_an_attempt_that_fails_ends_the_run(api, gate):
    """`True` holds though the attempt fails afterwards and retries were left."""

    @api.app.action(name="work")
    def work() -> None:
        gate.wait()
        raise ValueError

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        assert await api.cancel(api.app, run_id) is True
        gate.open()
        await worker.until_idle()
    run = await api.get(api.app, run_id)
    assert (run.state, run.result) == ("canceled", Canceled())
    assert not isinstance(run.result, Failed)


@pytest.mark.postgres("SQLite's one lock has reports wait for the user's transaction as a whole")
@pytest.mark.parametrize("commit", [False, True])
async def test_an_outcome_waits_for_a_cancel_that_is_not_committed_yet(api, gate, caplog, *, commit):
    """`cancel`'s True holds from the commit of the handle's transaction on; until then the run is in progress."""
    caplog.set_level(logging.DEBUG, "action_retrier")

    @api.app.action(name="gated")
    def gated() -> int:
        gate.wait()
        return 7

    run_id = await api.run(api.app, gated)
    other = api.scripted("other")
    async with api.worker() as worker:
        await gate.until_reached()
        async with api.connection() as connection:
            assert await api.cancel(connection, run_id) is True
            gate.open()
            await api.eventually(lambda: "open transaction holds its row" in caplog.text)
            assert await api.wait(api.app, await api.run(api.app, other.action)) == Success("other")
            assert await api.status(api.app, run_id) == InProgress()
            await api.call(connection.commit if commit else connection.rollback)
        await worker.until_idle()
        assert await api.status(api.app, run_id) == Completed(Canceled() if commit else Success(7))
