"""Starting an ended run afresh, and removing it: by hand and after `retention_days`."""

from datetime import timedelta
from typing import Any

import pytest

from action_retrier import (
    Call,
    Canceled,
    Completed,
    Failed,
    InProgress,
    MutationCtx,
    RunInProgress,
    RunNotFound,
    RunSucceeded,
    Success,
    SyncActionCtx,
)

from ..stores import TABLES

DAY_MS = 24 * 3_600_000


# -- retry -------------------------------------------------------------------------------------------------------------


async def test_a_failed_run_starts_afresh_under_the_same_id(api):
    """`retry` starts a failed run afresh under the same id, with a new count of failures."""
    flaky = api.scripted(ValueError("1"), ValueError("2"), ValueError("3"), "done", max_failures=1)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Failed(error="2", error_type="ValueError")
    assert await api.retry(api.app, run_id) == run_id
    assert await api.status(api.app, run_id) == InProgress()
    run = await api.get(api.app, run_id)
    assert (run.state, run.failures, run.result, run.completed_at) == ("pending", 0, None, None)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")
    assert flaky.executions == 4
    assert (await api.get(api.app, run_id)).failures == 1


async def test_a_canceled_run_starts_afresh(api):
    """`retry` starts a failed *or canceled* run afresh: every later `status` says canceled, until `retry`."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    await api.cancel(api.app, run_id)
    assert await api.status(api.app, run_id) == Completed(result=Canceled())
    assert await api.retry(api.app, run_id) == run_id
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")


async def test_a_retried_run_has_all_its_failures_again(api):
    """... with a new count of failures: `max_failures + 1` executions per start."""
    broken = api.scripted(ValueError("no"), max_failures=2)
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await api.result(worker, run_id)
        assert broken.executions == 3
        await api.retry(api.app, run_id)
        await api.result(worker, run_id)
        assert broken.executions == 6


async def test_attempt_numbers_are_never_used_again(api):
    """Attempt numbers fence off late reports, so `retry` does not reuse them."""
    broken = api.scripted(ValueError("no"), max_failures=1)
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await api.result(worker, run_id)
        await api.retry(api.app, run_id)
        await api.result(worker, run_id)
    numbers = [attempt.number for attempt in (await api.get(api.app, run_id)).attempts]
    assert numbers == sorted(set(numbers))
    assert len(numbers) in (2, 4), "either the whole history or the latest start's"


async def test_a_retried_run_begins_with_the_first_delay(api):
    """Afresh: backoff begins with the first delay again."""
    broken = api.scripted(ValueError("no"), max_failures=2, jitter=0)
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await api.result(worker, run_id)
        await api.retry(api.app, run_id)
        await worker.until_idle()
        run = await api.get(api.app, run_id)
    assert run.due_at - api.clock.now() == timedelta(milliseconds=250)


async def test_a_deadline_counts_anew_after_a_retry(api):
    """Afresh: a run that failed by its deadline can be retried at all."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, deadline_ms=1_000)
    api.clock.advance(5_000)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
        assert result.error_type == "DeadlineExceeded"
        await api.retry(api.app, run_id)
        assert await api.result(worker, run_id) == Success(return_value="done")


async def test_a_succeeded_run_is_not_retried(api):
    """`run_id = await retrier.retry(ctx, run_id)`: `RunSucceeded`."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
        with pytest.raises(RunSucceeded, match=run_id):
            await api.retry(api.app, run_id)
        await worker.until_idle()
    assert done.executions == 1


async def test_a_run_that_backs_off_becomes_due_now(api):
    """A pending run that backs off becomes due now."""
    flaky = api.scripted(ValueError("no"), "done", initial_backoff_ms=3_600_000)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        await worker.until_idle()
        assert flaky.executions == 1
        assert await api.retry(api.app, run_id) == run_id
        await worker.until_idle()
        assert flaky.executions == 2
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))


async def test_an_executing_run_is_not_retried(api, gate):
    """`RunInProgress` while it executes."""

    @api.app.action(name="work")
    def work() -> str:
        gate.wait()
        return "done"

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000):
        await gate.until_reached()
        with pytest.raises(RunInProgress, match=run_id):
            await api.retry(api.app, run_id)
        gate.open()
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))


async def test_a_run_whose_callback_is_pending_is_not_retried(api):
    """... or while its callback is pending."""
    done = api.scripted("done")
    callback = api.app.mutation(name="called_back")(do_nothing)
    run_id = await api.run(api.app, done.action, on_complete=callback)
    await api.cancel(api.app, run_id)
    with pytest.raises(RunInProgress, match="callback"):
        await api.retry(api.app, run_id)
    assert await api.status(api.app, run_id) == Completed(result=Canceled())


def do_nothing(ctx: MutationCtx) -> None: ...


async def test_an_unknown_run_is_not_retried(api):
    """`RunNotFound`."""
    with pytest.raises(RunNotFound, match="no-such-run"):
        await api.retry(api.app, "no-such-run")


async def test_a_canceled_run_whose_attempt_still_executes_is_retried_apart_from_it(api, gate):
    """What a superseded attempt reports later changes nothing: its number is not the new one's."""
    attempts = []

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> str:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            gate.wait()
            return "the canceled one"
        return "the retried one"

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        await api.cancel(api.app, run_id)
        await api.retry(api.app, run_id)

        async def completed() -> bool:
            return isinstance(await api.status(api.app, run_id), Completed)

        await api.eventually(completed)
        gate.open()
        await worker.until_idle()
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="the retried one"))
    assert len(set(attempts)) == 2


@pytest.fixture
async def crowd(api: Any) -> dict[str, str]:
    """Runs that failed, succeeded, were canceled or wait, of two actions in two queues."""
    broken = api.scripted(*[ValueError("no")] * 3, "done", name="broken", max_failures=0)
    done = api.scripted("done", name="done")
    failed = await api.run_many(api.app, [Call(broken.action, queue=queue) for queue in ("a", "a", "b")])
    succeeded = await api.run(api.app, done.action, queue="a")
    async with api.worker() as worker:
        await worker.until_idle()
    canceled = await api.run(api.app, done.action, queue="b")
    await api.cancel(api.app, canceled)
    waiting = await api.run_after(api.app, DAY_MS, done.action, queue="a")
    return {
        "failed in a": failed[0],
        "failed in a, too": failed[1],
        "failed in b": failed[2],
        "succeeded": succeeded,
        "canceled in b": canceled,
        "waiting": waiting,
    }


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"everything": True}, {"failed in a", "failed in a, too", "failed in b", "canceled in b"}),
        ({"action": "broken"}, {"failed in a", "failed in a, too", "failed in b"}),
        ({"action": "done"}, {"canceled in b"}),
        ({"queue": "b"}, {"failed in b", "canceled in b"}),
        ({"queue": "a", "action": "broken"}, {"failed in a", "failed in a, too"}),
        ({"queue": "c"}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "chosen",
)
async def test_retry_all_retries_the_failed_and_canceled_ones(api, crowd, chosen, expected):
    """`int = await retrier.retry_all(ctx, *, action=None, queue=None, everything=False)`: failed and canceled ones."""
    before = {name: (await api.get(api.app, run_id)).state for name, run_id in crowd.items()}
    assert await api.retry_all(api.app, **chosen) == len(expected)
    after = {name: (await api.get(api.app, run_id)).state for name, run_id in crowd.items()}
    assert after == before | dict.fromkeys(expected, "pending")
    async with api.worker() as worker:
        await worker.until_idle()
    for name in expected:
        assert await api.status(api.app, crowd[name]) == Completed(result=Success(return_value="done"))


async def test_retry_all_without_a_filter_is_refused(api, crowd):
    """A filter, or `everything=True`, as for `cancel_all`."""
    with pytest.raises((ValueError, TypeError), match="everything"):
        await api.retry_all(api.app)
    assert (await api.get(api.app, crowd["canceled in b"])).state == "canceled"


async def test_retry_all_leaves_a_run_that_backs_off_alone(api):
    """`retry_all` is for failed and canceled ones only."""
    flaky = api.scripted(ValueError("no"), "done", initial_backoff_ms=DAY_MS, jitter=0)
    run_id = await api.run(api.app, flaky.action)
    async with api.worker() as worker:
        await worker.until_idle()
        due_at = (await api.get(api.app, run_id)).due_at
        assert await api.retry_all(api.app, everything=True) == 0
        assert (await api.get(api.app, run_id)).due_at == due_at


# -- cleanup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "canceled"])
async def test_cleanup_removes_a_completed_run(api, outcome):
    """`cleanup` removes a completed run."""
    action = api.scripted("done" if outcome == "succeeded" else ValueError("no"), max_failures=0)
    run_id = await api.run(api.app, action.action)
    if outcome == "canceled":
        await api.cancel(api.app, run_id)
    async with api.worker() as worker:
        await worker.until_idle()
    assert (await api.get(api.app, run_id)).state == outcome
    assert await api.cleanup(api.app, run_id) is None
    for verb in (api.status, api.get, api.wait, api.cancel, api.retry, api.cleanup):
        with pytest.raises(RunNotFound, match=run_id):
            await verb(api.app, run_id)
    assert await api.all_runs() == []


async def test_cleanup_leaves_nothing_of_the_run_behind(api):
    """Runs take up space: after `cleanup` no table of the database mentions the run."""
    broken = api.scripted(ValueError("no"), max_failures=3)
    run_id = await api.run(api.app, broken.action)
    other = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await api.result(worker, run_id)
        await api.result(worker, other)
    await api.cleanup(api.app, run_id)
    rows = [row for name in TABLES for row in api.system.table(name)]
    mentions = [row for row in rows if run_id in map(str, row.values())]
    assert mentions == []
    assert len((await api.get(api.app, other)).attempts) == 4


async def test_cleanup_of_a_pending_run_is_refused(api):
    """`None = await retrier.cleanup(ctx, run_id)`: `RunInProgress`. Never one in progress."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    with pytest.raises(RunInProgress, match=run_id):
        await api.cleanup(api.app, run_id)
    assert await api.status(api.app, run_id) == InProgress()


async def test_cleanup_of_an_executing_run_is_refused(api, gate):
    """Never one in progress."""

    @api.app.action(name="work")
    def work() -> None:
        gate.wait()

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        with pytest.raises(RunInProgress, match=run_id):
            await api.cleanup(api.app, run_id)
        gate.open()
        await worker.until_idle()
        await api.cleanup(api.app, run_id)


async def test_cleanup_of_an_unknown_run_is_refused(api):
    """`RunNotFound`."""
    with pytest.raises(RunNotFound, match="no-such-run"):
        await api.cleanup(api.app, "no-such-run")


async def test_cleanup_concerns_one_run(api):
    """`cleanup` removes a completed run, and no other."""
    done = api.scripted("done")
    first, second = await api.run(api.app, done.action), await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
    await api.cleanup(api.app, first)
    assert await api.status(api.app, second) == Completed(result=Success(return_value="done"))


async def test_a_canceled_run_that_was_cleaned_up_while_it_executes_stays_gone(api, gate):
    """A late report of an attempt whose run is gone brings nothing back."""

    @api.app.action(name="work")
    def work() -> None:
        gate.wait()

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        await api.cancel(api.app, run_id)
        await api.cleanup(api.app, run_id)
        gate.open()
        await worker.until_idle()
    with pytest.raises(RunNotFound):
        await api.status(api.app, run_id)


# -- retention ---------------------------------------------------------------------------------------------------------


async def gone(api: Any, run_id: str) -> bool:
    try:
        await api.status(api.app, run_id)
    except RunNotFound:
        return True
    return False


async def swept(api: Any, worker: Any, run_id: str) -> bool:
    """Give the worker time to sweep: a day, in steps."""
    for _ in range(24):
        api.clock.advance(DAY_MS // 24)
        await worker.until_idle()
        if await gone(api, run_id):
            return True
    return False


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "canceled"])
async def test_after_seven_days_a_completed_run_is_removed(api, outcome):
    """Runs older than `retention_days` (7) since completion are removed automatically."""
    action = api.scripted("done" if outcome == "succeeded" else ValueError("no"), max_failures=0)
    run_id = await api.run(api.app, action.action)
    if outcome == "canceled":
        await api.cancel(api.app, run_id)
    async with api.worker() as worker:
        await worker.until_idle()
        for _ in range(7):
            assert not await gone(api, run_id)
            api.clock.advance(DAY_MS - 1)
            await worker.until_idle()
        assert not await gone(api, run_id)
        api.clock.advance(8)
        assert await swept(api, worker, run_id)


async def test_a_worker_that_starts_later_removes_old_runs(api):
    """... automatically: also what completed before this worker was started."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
    api.clock.advance(8 * DAY_MS)
    async with api.worker() as worker:
        await worker.until_idle()
        assert await swept(api, worker, run_id)


async def test_the_age_counts_from_completion(api):
    """... older than `retention_days` *since completion*."""
    done = api.scripted("done")
    run_id = await api.run_after(api.app, 30 * DAY_MS, done.action)
    async with api.worker() as worker:
        for _ in range(30):
            api.clock.advance(DAY_MS)
            await worker.until_idle()
        assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))
        for _ in range(6):
            api.clock.advance(DAY_MS)
            await worker.until_idle()
        assert not await gone(api, run_id)


async def test_retention_days_is_an_option_of_the_app(api):
    """`App(..., retention_days=7)`."""
    run_id = await api.run(api.app, "scripted")
    async with api.sibling(retention_days=1) as brief:
        brief.scripted("done")
        async with brief.worker() as worker:
            await worker.until_idle()
            api.clock.advance(DAY_MS - 1)
            await worker.until_idle()
            assert not await gone(api, run_id)
            api.clock.advance(1)
            assert await swept(brief, worker, run_id)


async def test_retention_concerns_the_apps_own_namespace(api):
    """Independent installations: the brief memory of one is no business of another."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    await api.cancel(api.app, run_id)
    async with api.sibling(namespace="brief", retention_days=1) as brief, brief.worker() as worker:
        for _ in range(3):
            api.clock.advance(DAY_MS)
            await worker.until_idle()
    assert await api.status(api.app, run_id) == Completed(result=Canceled())


async def test_retention_never_touches_a_run_in_progress(api, gate):
    """Never one in progress."""
    done = api.scripted("done")

    @api.app.action(name="work")
    def work() -> str:
        gate.wait()
        return "at last"

    waiting = await api.run_after(api.app, 365 * DAY_MS, done.action)
    unknown = await api.run(api.app, "nobody.knows")
    running = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        for _ in range(10):
            api.clock.advance(DAY_MS)
            assert await api.status(api.app, running) == InProgress()
        gate.open()
        await worker.until_idle()
        for run_id in (waiting, unknown):
            assert await api.status(api.app, run_id) == InProgress()
        assert await api.status(api.app, running) == Completed(result=Success(return_value="at last"))


async def test_retention_removes_runs_in_batches(api):
    """... in batches: a large number of old runs goes, too."""
    done = api.scripted("done")
    run_ids = await api.run_many(api.app, [Call(done.action)] * 2_500)
    assert await api.cancel_all(api.app, everything=True) == 2_500
    api.clock.advance(8 * DAY_MS)
    async with api.worker() as worker:
        for _ in range(24):
            await worker.until_idle()
            if (await api.list(api.app, limit=1)).runs == []:
                break
            api.clock.advance(DAY_MS // 24)
        assert (await api.list(api.app)).runs == []
    assert await gone(api, run_ids[0])


async def test_a_retried_run_is_not_old(api):
    """Only a completed run can be too old: `retry` makes it one in progress again."""
    broken = api.scripted(ValueError("no"), ValueError("no"), "done", max_failures=0, name="broken")
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(6 * DAY_MS)
        await api.retry(api.app, run_id)
        await worker.until_idle()
        api.clock.advance(6 * DAY_MS)
        await worker.until_idle()
        assert not await gone(api, run_id)
