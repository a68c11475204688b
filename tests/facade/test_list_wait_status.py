"""What one can learn: `status`, `wait`, `get`, `list`."""

import asyncio
import contextlib
from typing import Any

import pytest

from action_retrier import (
    Call,
    Canceled,
    Completed,
    Failed,
    InProgress,
    MutationCtx,
    Page,
    Run,
    RunNotFound,
    Success,
)

# -- ids ---------------------------------------------------------------------------------------------------------------

NOT_AN_ID = [
    "",
    " ",
    "x",
    "no-such-run",
    "00000000-0000-0000-0000-000000000000",
    "0190a0c0-0000-7000-8000-000000000000",
    "'; DROP TABLE notes; --",
    "%",
    "_" * 36,
    "ß€😀",
    "a\0b",
    "\ud800",
    "x" * 100_000,
    "\n",
    "None",
    "1e308",
]


@pytest.mark.parametrize("run_id", NOT_AN_ID, ids=lambda run_id: ascii(run_id[:40]))
async def test_any_string_that_is_not_a_known_id_is_run_not_found(api, run_id):
    """Any string that is not a known id is `RunNotFound`, whatever it looks like."""
    done = api.scripted("done")
    await api.run(api.app, done.action)
    for verb in (api.status, api.get, api.wait, api.cancel, api.cleanup, api.retry):
        with pytest.raises(RunNotFound):
            await verb(api.app, run_id)
    assert len(await api.all_runs()) == 1


async def test_what_resembles_a_known_id_is_run_not_found(api):
    """... an id is the very string that `run` returned."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    near = [f" {run_id}", f"{run_id} ", f"{run_id}\n", f"{{{run_id}}}", f"urn:uuid:{run_id}", run_id[:-1], run_id + "0"]
    near += [other for other in (run_id.upper(), run_id.replace("-", "")) if other != run_id]
    for other in near:
        with pytest.raises(RunNotFound):
            await api.status(api.app, other)
        with pytest.raises(RunNotFound):
            await api.cancel(api.app, other)
    assert await api.status(api.app, run_id) == InProgress()


# -- status ------------------------------------------------------------------------------------------------------------


async def test_status_says_in_progress_until_the_run_completes(api, gate):
    """`InProgress` while it is pending, executing, or backing off."""

    @api.app.action(name="work", max_failures=1)
    def work() -> None:
        gate.wait()
        raise ValueError("no")

    run_id = await api.run_after(api.app, 1_000, work)
    assert await api.status(api.app, run_id) == InProgress()
    async with api.worker() as worker:
        api.clock.advance(1_000)
        await gate.until_reached()
        assert await api.status(api.app, run_id) == InProgress()
        gate.open()
        await worker.until_idle()
        assert await api.status(api.app, run_id) == InProgress()
        await api.result(worker, run_id)
    assert await api.status(api.app, run_id) == Completed(result=Failed(error="no", error_type="ValueError"))


async def test_status_is_for_match(api):
    """`RunStatus`: frozen dataclasses, made for `match`."""
    done = api.scripted({"total": 7})
    run_id = await api.run(api.app, done.action)
    match await api.status(api.app, run_id):
        case InProgress():
            pass
        case Completed():
            pytest.fail("not yet")
    async with api.worker() as worker:
        await worker.until_idle()
    match await api.status(api.app, run_id):
        case Completed(result=Success(return_value={"total": total})):
            assert total == 7
        case other:
            pytest.fail(f"unexpected: {other}")


# -- wait --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "canceled"])
async def test_wait_returns_the_result_of_a_completed_run_at_once(api, outcome):
    """`result = await retrier.wait(ctx, run_id)`: a `RunResult`; a failure is returned, not raised."""
    action = api.scripted("done" if outcome == "succeeded" else ValueError("no"), max_failures=0)
    run_id = await api.run(api.app, action.action)
    if outcome == "canceled":
        await api.cancel(api.app, run_id)
    async with api.worker() as worker:
        await worker.until_idle()
    expected = {
        "succeeded": Success(return_value="done"),
        "failed": Failed(error="no", error_type="ValueError"),
        "canceled": Canceled(),
    }[outcome]
    assert await api.wait(api.app, run_id) == expected
    assert await api.wait(api.app, run_id, timeout_ms=0) == expected


async def test_wait_waits_until_the_run_completes(api, gate):
    """... and comes back when the run completes, not before."""

    @api.app.action(name="work")
    def work() -> str:
        gate.wait()
        return "done"

    run_id = await api.run(api.app, work)
    async with api.worker():
        waiters = [api.background(api.retrier.wait, api.app, run_id) for _ in range(3)]
        await gate.until_reached()
        finished, _ = await asyncio.wait(waiters, timeout=0.2)
        assert not finished
        gate.open()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*waiters) == [Success(return_value="done")] * 3


async def test_wait_notices_a_cancel(api):
    """A canceled run has completed."""
    done = api.scripted("done")
    run_id = await api.run_after(api.app, 60_000, done.action)
    waiter = api.background(api.retrier.wait, api.app, run_id)
    await asyncio.wait({waiter}, timeout=0.1)
    await api.cancel(api.app, run_id)
    async with asyncio.timeout(10):
        assert await waiter == Canceled()


async def test_wait_notices_what_another_app_completes(api):
    """... wherever the run is executed."""
    run_id = await api.run(api.app, "elsewhere")
    waiter = api.background(api.retrier.wait, api.app, run_id)
    async with api.sibling() as other:
        other.scripted("done", name="elsewhere")
        async with other.worker(), asyncio.timeout(10):
            assert await waiter == Success(return_value="done")


async def test_wait_gives_up_after_its_timeout(api):
    """`timeout_ms`: `TimeoutError`; the run goes on."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    waiter = api.background(api.retrier.wait, api.app, run_id, timeout_ms=200)
    with pytest.raises(TimeoutError, match="within 200 ms; `get` tells"):
        await api.advance_until_done(waiter, 100)
    assert await api.status(api.app, run_id) == InProgress()
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")


async def test_wait_without_time_asks_once(api):
    """`timeout_ms=0`."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    with pytest.raises(TimeoutError):
        await api.wait(api.app, run_id, timeout_ms=0)


async def test_wait_notices_that_the_run_is_gone(api):
    """`RunNotFound` also if the run is cleaned up meanwhile (its result may have been seen just before)."""
    done = api.scripted("done")
    run_id = await api.run_after(api.app, 60_000, done.action)
    waiter = api.background(api.retrier.wait, api.app, run_id)
    await asyncio.wait({waiter}, timeout=0.05)

    await api.cancel(api.app, run_id)
    await api.cleanup(api.app, run_id)
    async with asyncio.timeout(10):
        with contextlib.suppress(RunNotFound):
            assert await waiter == Canceled()


@pytest.mark.parametrize("timeout_ms", [-1, float("nan"), "5", True], ids=str)
async def test_a_wrong_timeout_is_refused(api, timeout_ms):
    """Wrong types, negative, NaN: `ValueError` / `TypeError` naming the option."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    with pytest.raises((ValueError, TypeError), match="timeout_ms"):
        await api.wait(api.app, run_id, timeout_ms=timeout_ms)


async def test_a_waiting_task_can_be_cancelled(async_api):
    """`wait` is an ordinary await: cancelling it disturbs nobody."""
    api = async_api
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    waiter = asyncio.create_task(api.retrier.wait(api.app, run_id))
    await asyncio.wait({waiter}, timeout=0.05)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")


# -- list --------------------------------------------------------------------------------------------------------------


async def test_list_of_nothing_is_an_empty_last_page(api):
    """`page.runs` is a list of `Run`; `page.cursor` is `None` on the last page."""
    page = await api.list(api.app)
    assert isinstance(page, Page)
    assert (page.runs, page.cursor) == ([], None)


async def test_list_shows_the_newest_first(api):
    """`page.runs` is a list of `Run`, newest first."""
    done = api.scripted("done")
    run_ids = []
    for _ in range(5):
        run_ids.append(await api.run(api.app, done.action))
        api.clock.advance(10)
    page = await api.list(api.app)
    assert [run.id for run in page.runs] == run_ids[::-1]
    assert page.cursor is None
    assert all(isinstance(run, Run) for run in page.runs)


async def test_list_orders_what_was_started_in_one_instant(api):
    """Newest first, also where the clock cannot tell."""
    done = api.scripted("done")
    run_ids = await api.run_many(api.app, [Call(done.action)] * 30)
    listed = [run.id for run in await api.all_runs(limit=7)]
    assert sorted(listed) == sorted(run_ids)
    assert listed == [run.id for run in (await api.list(api.app)).runs]


@pytest.mark.parametrize("limit", [1, 3, 10, 11, 100])
async def test_the_pages_hold_each_run_once(api, limit):
    """`limit=100, cursor=None`: with the cursor of one page one asks for the next."""
    done = api.scripted("done")
    run_ids = []
    for number in range(11):
        run_ids.append(await api.run(api.app, done.action))
        api.clock.advance(number % 2)
    pages: list[list[str]] = []
    cursor = None
    while True:
        page = await api.list(api.app, limit=limit, cursor=cursor)
        pages.append([run.id for run in page.runs])
        cursor = page.cursor
        if cursor is None:
            break
    assert all(len(page) <= limit for page in pages)
    assert all(len(page) == limit for page in pages[:-1])
    assert pages[-1], "no empty page at the end"
    assert sorted(sum(pages, [])) == sorted(run_ids)  # noqa: RUF017 - eleven ids


async def test_a_page_holds_a_hundred_runs_by_default(api):
    """`limit=100`."""
    done = api.scripted("done")
    await api.run_many(api.app, [Call(done.action)] * 101)
    page = await api.list(api.app)
    assert len(page.runs) == 100
    assert page.cursor is not None
    assert len((await api.list(api.app, cursor=page.cursor)).runs) == 1


async def test_runs_that_arrive_between_two_pages_shift_nothing(api):
    """The cursor is a place, not a count."""
    done = api.scripted("done")
    old = []
    for _ in range(6):
        old.append(await api.run(api.app, done.action))
        api.clock.advance(10)
    first = await api.list(api.app, limit=3)
    for _ in range(4):
        await api.run(api.app, done.action)
        api.clock.advance(10)
    second = await api.list(api.app, limit=3, cursor=first.cursor)
    assert [run.id for run in first.runs + second.runs] == old[::-1]


@pytest.fixture
async def crowd(api: Any) -> dict[str, str]:
    """A run of every state and in several queues, and one with a pending callback."""
    done = api.scripted("done", name="done")
    broken = api.scripted(ValueError("no"), name="broken", max_failures=0)

    @api.app.mutation(name="called_back")
    def called_back(ctx: MutationCtx) -> None: ...

    runs = {
        "succeeded": await api.run(api.app, done.action),
        "failed": await api.run(api.app, broken.action, queue="mail"),
        "called back": await api.run(api.app, done.action, queue="mail", on_complete=called_back),
    }
    async with api.worker() as worker:
        await worker.until_idle()
    api.clock.advance(1_000)
    runs["pending"] = await api.run(api.app, broken.action)
    runs["canceled"] = await api.run(api.app, done.action, queue="mail", on_complete=called_back)
    await api.cancel(api.app, runs["canceled"])
    return runs


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {"succeeded", "failed", "called back", "pending", "canceled"}),
        ({"state": "pending"}, {"pending"}),
        ({"state": "running"}, set()),
        ({"state": "succeeded"}, {"succeeded", "called back"}),
        ({"state": "failed"}, {"failed"}),
        ({"state": "canceled"}, {"canceled"}),
        ({"action": "done"}, {"succeeded", "called back", "canceled"}),
        ({"action": "broken"}, {"failed", "pending"}),
        ({"action": "nobody.knows"}, set()),
        ({"queue": "mail"}, {"failed", "called back", "canceled"}),
        ({"queue": "default"}, {"succeeded", "pending"}),
        ({"callback": "pending"}, {"canceled"}),
        ({"callback": "done"}, {"called back"}),
        ({"state": "succeeded", "queue": "mail"}, {"called back"}),
        ({"state": "canceled", "action": "done", "queue": "mail", "callback": "pending"}, {"canceled"}),
        ({"state": "failed", "action": "done"}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "chosen",
)
async def test_list_filters(api, crowd, filters, expected):
    """`list(ctx, *, state=None, action=None, queue=None, callback=None, ...)`."""
    names = {run_id: name for name, run_id in crowd.items()}
    assert {names[run.id] for run in (await api.list(api.app, **filters)).runs} == expected
    assert {names[run.id] for run in await api.all_runs(limit=1, **filters)} == expected


async def test_list_takes_the_decorated_function(api):
    """`action`: the decorated function, or the registered name."""
    one, two = api.scripted("done", name="one"), api.scripted("done", name="two")
    run_id = await api.run(api.app, one.action)
    await api.run(api.app, two.action)
    assert [run.id for run in (await api.list(api.app, action=one.action)).runs] == [run_id]


async def test_list_shows_a_running_run(api, gate):
    """`state="running"`."""

    @api.app.action(name="work")
    def work() -> None:
        gate.wait()

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000):
        await gate.until_reached()
        assert [run.id for run in (await api.list(api.app, state="running")).runs] == [run_id]
        gate.open()


async def test_a_listed_run_tells_what_get_tells(api, crowd):
    """`page.runs` is a list of `Run`."""
    for run in (await api.list(api.app)).runs:
        full = await api.get(api.app, run.id)
        for name in ("id", "action", "args", "state", "queue", "priority", "created_at", "failures", "result"):
            assert getattr(run, name) == getattr(full, name)
        assert run.callback == full.callback


@pytest.mark.parametrize(
    "filters",
    [{"state": "done"}, {"state": 5}, {"limit": 0}, {"limit": -1}, {"limit": "10"}, {"limit": True}, {"callback": "x"}],
    ids=str,
)
async def test_a_wrong_filter_is_refused(api, filters):
    """A typing mistake is an error that names the filter, not an empty list."""
    with pytest.raises((ValueError, TypeError), match=next(iter(filters))):
        await api.list(api.app, **filters)


@pytest.mark.parametrize("queue", ["", "a\0b", "\ud800", "q" * 256])
@pytest.mark.parametrize("verb", ["list", "cancel_all", "retry_all"])
async def test_a_queue_that_cannot_be_one_is_refused(api, verb, queue):
    """The same on every database, before it is asked."""
    with pytest.raises(ValueError, match="queue must have 1 to 255 printable characters"):
        await getattr(api, verb)(api.app, queue=queue)


@pytest.mark.parametrize("cursor", ["", "nonsense", "'; DROP TABLE notes; --", 5], ids=str)
async def test_a_wrong_cursor_is_refused(api, cursor):
    """A cursor comes from a page."""
    done = api.scripted("done")
    await api.run(api.app, done.action)
    with pytest.raises((ValueError, TypeError), match="cursor"):
        await api.list(api.app, cursor=cursor)


@pytest.mark.parametrize("hostile", ["'; DROP TABLE notes; --", "%", "_", "\\", '"'], ids=ascii)
async def test_a_filter_is_compared_and_not_interpreted(api, hostile):
    """No value becomes a part of a statement or of a pattern."""
    done = api.scripted("done")
    await api.run(api.app, done.action, queue="mail")
    assert (await api.list(api.app, queue=hostile)).runs == []
    assert (await api.list(api.app, action=hostile)).runs == []
    assert api.notes() == []


async def test_a_run_equals_what_get_returns_again(api):
    """`Run` is a value: reading changes nothing."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    assert await api.get(api.app, run_id) == await api.get(api.app, run_id)
