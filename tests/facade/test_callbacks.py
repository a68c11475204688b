"""Promise 4: `on_complete` exactly once."""

import asyncio
import contextlib
import logging
import sqlite3
from typing import Any

import pytest

from action_retrier import (
    ActionRetrier,
    Call,
    Canceled,
    Completed,
    Failed,
    InProgress,
    MutationCtx,
    RunInProgress,
    RunNotFound,
    Success,
    SyncActionRetrier,
)

DAY_MS = 24 * 3_600_000


async def settled(api: Any, worker: Any, run_id: str, *, steps: int = 30, step_ms: int = 60_000) -> Any:
    """Let time pass until the run's callback is done; the run."""
    for _ in range(steps):
        await worker.until_idle()
        run = await api.get(api.app, run_id)
        if run.callback.state == "done":
            return run
        api.clock.advance(step_ms)
    raise AssertionError(f"the callback is not done: {run}")


class Flaky:
    """A callback that writes, and raises until it was told not to."""

    def __init__(self, api: Any, note: Any, error: BaseException | None = None, *, name: str = "called_back") -> None:
        self.api = api
        self.tries = 0
        self.error: BaseException | None = error or ValueError("the callback is broken")

        def callback(ctx: MutationCtx) -> None:
            self.tries += 1
            note(ctx, f"try {self.tries}")
            if self.error is not None:
                raise self.error.with_traceback(None)

        self.mutation = api.app.mutation(name=name)(callback)


# -- what it is called with --------------------------------------------------------------------------------------------


def _none(seen):
    def callback():
        seen.append({})

    return callback


def _ctx(seen):
    def callback(ctx):
        seen.append({"ctx": ctx})

    return callback


def _run_id(seen):
    def callback(run_id):
        seen.append({"run_id": run_id})

    return callback


def _result(seen):
    def callback(result):
        seen.append({"result": result})

    return callback


def _context(seen):
    def callback(context):
        seen.append({"context": context})

    return callback


def _all(seen):
    def callback(ctx, run_id, result, context):
        seen.append({"ctx": ctx, "run_id": run_id, "result": result, "context": context})

    return callback


def _another_order(seen):
    def callback(context, result, run_id):
        seen.append({"run_id": run_id, "result": result, "context": context})

    return callback


def _keyword_only(seen):
    def callback(ctx, *, result):
        seen.append({"ctx": ctx, "result": result})

    return callback


def _with_a_default(seen):
    def callback(result, more=5):
        seen.append({"result": result})

    return callback


def _coroutine(seen):
    async def callback(ctx, result):
        seen.append({"ctx": ctx, "result": result})

    return callback


@pytest.mark.parametrize(
    "make",
    [_none, _ctx, _run_id, _result, _context, _all, _another_order, _keyword_only, _with_a_default, _coroutine],
)
async def test_a_callback_gets_what_it_names(api, make):
    """It is called with those of `ctx`, `run_id`, `result`, `context` that it names as parameters."""
    seen: list[dict[str, Any]] = []
    callback = api.app.mutation(name="called_back")(make(seen))
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=callback, context={"order": 7})
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    (arguments,) = seen
    if "ctx" in arguments:
        assert isinstance(arguments.pop("ctx"), MutationCtx)
    everything = {"run_id": run_id, "result": Success(return_value="done"), "context": {"order": 7}}
    assert arguments == {name: everything[name] for name in arguments}


async def test_without_a_context_the_context_is_none(api):
    """`context=None`."""
    seen: list[Any] = []
    callback = api.app.mutation(name="called_back")(_context(seen))
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert seen == [{"context": None}]


@pytest.mark.parametrize("outcome", ["success", "failed", "canceled"])
@pytest.mark.parametrize("colour_of_mutation", ["def", "async def"])
async def test_a_callback_runs_for_every_outcome(api, note, outcome, colour_of_mutation):
    """For every outcome its database writes are committed exactly once."""
    seen: list[Any] = []

    if colour_of_mutation == "def":

        @api.app.mutation(name="called_back")
        def callback(ctx: MutationCtx, result: Any) -> None:
            seen.append(result)
            note(ctx, result.type)
    else:

        @api.app.mutation(name="called_back")
        async def callback(ctx: MutationCtx, result: Any) -> None:
            await asyncio.get_running_loop().run_in_executor(None, str)
            seen.append(result)
            note(ctx, result.type)

    action = api.scripted("done" if outcome == "success" else ValueError("no"), max_failures=0)
    run_id = await api.run(api.app, action.action, on_complete=callback)
    if outcome == "canceled":
        assert await api.cancel(api.app, run_id)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
        api.clock.advance(DAY_MS)
        await worker.until_idle()
    assert seen == [
        {
            "success": Success(return_value="done"),
            "failed": Failed(error="no", error_type="ValueError"),
            "canceled": Canceled(),
        }[outcome]
    ]
    assert api.notes() == [outcome]


async def test_a_callback_may_be_named(api, note):
    """`on_complete`: a mutation or its name."""

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx) -> None:
        note(ctx, "called back")

    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete="called_back")
    assert (await api.get(api.app, run_id)).callback.name == "called_back"
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert api.notes() == ["called back"]


async def test_a_run_without_a_callback_has_none(api):
    """`callback` is None without `on_complete`, and nothing is pending."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
    assert (await api.get(api.app, run_id)).callback is None
    assert (await api.list(api.app, callback="pending")).runs == []


async def test_every_attempt_but_the_last_calls_nobody_back(api, note):
    """Only a completion calls back."""
    flaky = api.scripted(ValueError("1"), ValueError("2"), "done")

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, result: Any) -> None:
        note(ctx, f"{result.type} after {flaky.executions}")

    run_id = await api.run(api.app, flaky.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert api.notes() == ["success after 3"]


# -- one transaction ---------------------------------------------------------------------------------------------------


async def test_completion_and_callback_commit_together(api, note):
    """When an attempt ends the run, completion and callback commit together."""
    seen: list[Any] = []
    done = api.scripted("done")

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, run_id: str) -> None:
        note(ctx, "written")
        with contextlib.closing(api.system.connect()) as outside:
            seen.append(SyncActionRetrier(api.app).status(outside, run_id))
        seen.append(api.notes())

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert seen == [InProgress(), []], "nobody sees the completion before the callback's writes, nor the reverse"
    assert api.notes() == ["written"]


async def test_inside_the_callback_status_already_says_completed(api):
    """Inside the callback `status` already says completed."""
    seen: list[Any] = []
    done = api.scripted("done")
    retrier = SyncActionRetrier(api.app)

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, run_id: str) -> None:
        seen.append(retrier.status(ctx, run_id))
        seen.append(retrier.get(ctx, run_id).state)

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert seen == [Completed(result=Success(return_value="done")), "succeeded"]


async def test_an_async_callback_asks_the_async_retrier(api):
    """Inside the callback `status` already says completed, in either colour."""
    seen: list[Any] = []
    done = api.scripted("done")
    retrier = ActionRetrier(api.app)

    @api.app.mutation(name="called_back")
    async def callback(ctx: MutationCtx, run_id: str) -> None:
        seen.append(await retrier.status(ctx, run_id))

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert seen == [Completed(result=Success(return_value="done"))]


async def test_a_callback_starts_other_runs(api):
    """Through its `ctx` a callback starts what comes next, in the same transaction."""
    done = api.scripted("done")
    follow_up = api.scripted("next", name="follow_up")
    retrier = SyncActionRetrier(api.app)
    started: list[str] = []

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx) -> None:
        started.append(retrier.run(ctx, follow_up.action))

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
        assert await api.result(worker, started[0]) == Success(return_value="next")


async def test_a_callback_that_cancels_its_own_run_is_told_no(api):
    """A callback that cancels its own run: no-op, returns False."""
    seen: list[Any] = []
    done = api.scripted("done")
    retrier = SyncActionRetrier(api.app)

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, run_id: str) -> None:
        seen.append(retrier.cancel(ctx, run_id))

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
        api.clock.advance(DAY_MS)
        await worker.until_idle()
    assert seen == [False]
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))


async def test_a_callback_that_cleans_up_its_own_run_does_no_harm(api, note):
    """Whether that is refused or done: the callback's writes count once, and the worker goes on."""
    done = api.scripted("done")
    retrier = SyncActionRetrier(api.app)

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, run_id: str) -> None:
        note(ctx, "called back")
        with contextlib.suppress(RunInProgress):
            retrier.cleanup(ctx, run_id)

    await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(DAY_MS)
        await worker.until_idle()
        other = await api.run(api.app, done.action)
        assert await api.result(worker, other) == Success(return_value="done")
    assert api.notes() == ["called back"]
    assert done.executions == 2


# -- a callback that raises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("broken"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(5)),
        *(GeneratorExit(), sqlite3.OperationalError("x")),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_callback_that_raises_is_tried_again_until_it_commits(api, note, error):
    """If the callback raises, its writes roll back, the outcome stays, and the callback alone is tried again."""
    flaky, done = Flaky(api, note, error), api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=flaky.mutation)
    async with api.worker() as worker:
        await worker.until_idle()
        assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))
        assert api.notes() == []
        for _ in range(3):
            api.clock.advance(60_000)
            await worker.until_idle()
        assert flaky.tries >= 2
        assert api.notes() == []
        assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))

        flaky.error = None
        await settled(api, worker, run_id)
        tries = flaky.tries
        api.clock.advance(DAY_MS)
        await worker.until_idle()
    assert flaky.tries == tries, "once committed it is not called again"
    assert api.notes() == [f"try {tries}"]
    assert done.executions == 1


async def test_the_callback_is_tried_again_with_backoff(api, note):
    """... the callback alone is tried again *with backoff*: not at once, and not ever faster."""
    flaky, done = Flaky(api, note), api.scripted("done")
    await api.run(api.app, done.action, on_complete=flaky.mutation)
    async with api.worker() as worker:
        await worker.until_idle()
        assert flaky.tries <= 3, "it is not tried over and over while no time passes"
        before = flaky.tries
        await worker.until_idle()
        assert flaky.tries == before
        api.clock.advance(DAY_MS)
        await worker.until_idle()
        assert flaky.tries > before


async def test_the_action_never_runs_again_because_its_callback_failed(api, note):
    """The action is never run again because its callback failed."""
    flaky, done = Flaky(api, note), api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=flaky.mutation)
    async with api.worker() as worker:
        for _ in range(20):
            await worker.until_idle()
            api.clock.advance(60_000)
        assert flaky.tries >= 5
        assert done.executions == 1
        run = await api.get(api.app, run_id)
        assert (run.state, run.failures, len(run.attempts)) == ("succeeded", 0, 1)
        flaky.error = None
        await settled(api, worker, run_id)


async def test_a_failing_callback_is_visible(api, note):
    """A pending or failing callback is visible in `get` and `list(callback="pending")`."""
    flaky, done = Flaky(api, note), api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=flaky.mutation)
    await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
        run = await api.get(api.app, run_id)
        assert (run.callback.name, run.callback.state) == ("called_back", "pending")
        assert 1 <= run.callback.tries <= flaky.tries
        assert "the callback is broken" in run.callback.last_error
        assert [run.id for run in (await api.list(api.app, callback="pending")).runs] == [run_id]

        flaky.error = None
        run = await settled(api, worker, run_id)
        assert 2 <= run.callback.tries <= flaky.tries
        assert (await api.list(api.app, callback="pending")).runs == []


async def test_the_callback_of_a_run_in_progress_is_not_pending_yet(api, note):
    """`callback="pending"` is for outcomes that have not been told, not for runs that have none."""
    flaky, done = Flaky(api, note), api.scripted("done")
    run_id = await api.run_after(api.app, DAY_MS, done.action, on_complete=flaky.mutation)
    assert (await api.list(api.app, callback="pending")).runs == []
    run = await api.get(api.app, run_id)
    assert run.callback.name == "called_back"
    assert run.callback.state not in {"pending", "done"}
    assert (run.callback.tries, run.callback.last_error) == (0, None)


async def test_a_pending_callback_keeps_cleanup_and_retry_off(api, note):
    """... keeps `cleanup` and `retry` off (`RunInProgress` that says so)."""
    flaky, broken = Flaky(api, note), api.scripted(ValueError("no"), max_failures=0)
    run_id = await api.run(api.app, broken.action, on_complete=flaky.mutation)
    async with api.worker() as worker:
        await worker.until_idle()
        with pytest.raises(RunInProgress, match="callback"):
            await api.cleanup(api.app, run_id)
        with pytest.raises(RunInProgress, match="callback"):
            await api.retry(api.app, run_id)
        assert await api.retry_all(api.app, everything=True) == 0
        assert isinstance((await api.status(api.app, run_id)).result, Failed)
        flaky.error = None
        await settled(api, worker, run_id)
        await api.cleanup(api.app, run_id)
    with pytest.raises(RunNotFound):
        await api.status(api.app, run_id)


async def test_what_a_callback_raised_and_where_is_on_record(api, note):
    """A pending or failing callback is visible in `get`: with the traceback of its last try, until it commits."""
    flaky, done = Flaky(api, note), api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=flaky.mutation)
    async with api.worker() as worker:
        await worker.until_idle()
        first = (await api.get(api.app, run_id)).callback
        api.clock.advance(DAY_MS)
        await worker.until_idle()
        again = (await api.get(api.app, run_id)).callback

    for told in (first, again):
        assert told.last_error.startswith("ValueError: ")
        assert told.last_traceback.startswith("Traceback (most recent call last)")
        assert "test_callbacks.py" in told.last_traceback
        assert told.last_traceback.rstrip().endswith(told.last_error)
    assert (first.tries, again.tries) == (1, 2)


async def test_a_pending_callback_is_never_swept_away(api, note):
    """... and is never swept away."""
    flaky, done = Flaky(api, note), api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=flaky.mutation)
    async with api.worker() as worker:
        for _ in range(40):
            await worker.until_idle()
            api.clock.advance(DAY_MS)
        await worker.until_idle()  # the try that became due by the last step counts its delay from now
        assert (await api.get(api.app, run_id)).callback.state == "pending"
        flaky.error = None
        api.clock.advance(DAY_MS)
        await worker.until_idle()
    assert api.notes() == [f"try {flaky.tries}"]
    assert done.executions == 1


async def test_discarding_the_callback_is_deliberate_and_logged(api, note, caplog):
    """`cleanup(discard_callback=True)` is the operator's deliberate, logged way out."""
    flaky, done = Flaky(api, note), api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=flaky.mutation)
    async with api.worker() as worker:
        await worker.until_idle()
        caplog.clear()
        await api.cleanup(api.app, run_id, discard_callback=True)
        assert any(
            record.levelno >= logging.WARNING and run_id in f"{record.getMessage()} {vars(record)}"
            for record in caplog.records
        )
        with pytest.raises(RunNotFound):
            await api.get(api.app, run_id)
        tries = flaky.tries
        flaky.error = None
        api.clock.advance(DAY_MS)
        await worker.until_idle()
    assert flaky.tries == tries
    assert api.notes() == []


async def test_discarding_the_callback_of_a_run_in_progress_is_refused(api, note):
    """`cleanup` never removes a run in progress, whatever happens to callbacks."""
    flaky, done = Flaky(api, note), api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=flaky.mutation)
    with pytest.raises(RunInProgress):
        await api.cleanup(api.app, run_id, discard_callback=True)
    assert await api.status(api.app, run_id) == InProgress()


async def test_cleanup_may_say_discard_where_there_is_nothing_to_discard(api):
    """`discard_callback=True` allows; it does not require."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
    await api.cleanup(api.app, run_id, discard_callback=True)
    with pytest.raises(RunNotFound):
        await api.status(api.app, run_id)


async def test_what_a_failed_try_started_does_not_exist(api):
    """Its writes roll back: the runs that it started, too."""
    done = api.scripted("done")
    follow_up = api.scripted("next", name="follow_up")
    retrier = SyncActionRetrier(api.app)
    started: list[str] = []

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx) -> None:
        started.append(retrier.run(ctx, follow_up.action))
        if len(started) == 1:
            raise ValueError

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
        with pytest.raises(RunNotFound):
            await api.status(api.app, started[0])
        assert await api.result(worker, started[-1]) == Success(return_value="next")
    assert follow_up.executions == 1


async def test_one_bad_callback_spoils_no_neighbour(api, note):
    """A failing callback delays nobody else's."""
    flaky, done = Flaky(api, note, name="broken"), api.scripted("done")

    @api.app.mutation(name="sound")
    def sound(ctx: MutationCtx, context: int) -> None:
        note(ctx, f"sound {context}")

    calls = [Call(done.action, on_complete=sound, context=number) for number in range(10)]
    calls.insert(5, Call(done.action, on_complete=flaky.mutation))
    await api.run_many(api.app, calls)
    async with api.worker() as worker:
        await worker.until_idle()
        assert sorted(api.notes()) == [f"sound {number}" for number in range(10)]
        assert len((await api.list(api.app, callback="pending")).runs) == 1
        flaky.error = None
        api.clock.advance(DAY_MS)
        await worker.until_idle()
        assert (await api.list(api.app, callback="pending")).runs == []


@pytest.mark.parametrize("isolation", ["serializable", "read committed"])
async def test_callbacks_of_either_isolation_count_once(api, note, isolation):
    """Its body may run more than once, its writes count once."""
    done = api.scripted("done")

    @api.app.mutation(name="called_back", isolation=isolation)
    def callback(ctx: MutationCtx, context: int) -> None:
        note(ctx, f"{context:02}")
        if context == 7:
            raise ValueError

    await api.run_many(api.app, [Call(done.action, on_complete=callback, context=number) for number in range(20)])
    async with api.worker() as worker:
        await worker.until_idle()
    assert sorted(api.notes()) == [f"{number:02}" for number in range(20) if number != 7]


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration], ids=lambda error: error.__name__
)
async def test_a_callback_that_would_end_a_program_spoils_no_neighbour(sync_api, note, error):
    """Whatever one of several callbacks raises: it is tried again, the others commit, and the worker lives on."""
    api = sync_api  # whose worker has a thread of its own: what escapes from it does not end the tests
    done = api.scripted("done")
    tries: list[int] = []

    @api.app.mutation(name="called_back", isolation="read committed")
    def callback(ctx: MutationCtx, context: int) -> None:
        note(ctx, f"{context:02}")
        if context == 5:
            tries.append(1)
            if len(tries) < 4:
                raise error

    run_ids = await api.run_many(
        api.app, [Call(done.action, on_complete=callback, context=number) for number in range(12)]
    )
    async with api.worker() as worker:
        for run_id in run_ids:
            await settled(api, worker, run_id)
    assert sorted(api.notes()) == [f"{number:02}" for number in range(12)]
    assert done.executions == 12


async def test_a_callback_that_cancels_its_own_task_counts_as_raising(api, note):
    """If the callback raises, the callback alone is tried again: its own `CancelledError` is no stop of the worker."""
    done = api.scripted("done")
    tries: list[int] = []

    @api.app.mutation(name="called_back")
    async def callback(ctx: MutationCtx) -> None:
        tries.append(1)
        note(ctx, f"try {len(tries)}")
        if len(tries) < 3:
            asyncio.current_task().cancel()
            await asyncio.get_running_loop().create_future()

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
        other = await api.run(api.app, done.action)
        assert await api.result(worker, other) == Success(return_value="done")
    assert api.notes() == ["try 3"]


@pytest.mark.parametrize("way_out", ["commit", "rollback", "executescript", "execute"])
async def test_a_callback_that_ends_its_own_transaction_counts_as_raising(api, note, way_out):
    """Committing or rolling back through `ctx.db` is an error, not a way out."""
    done = api.scripted("done")
    tries: list[int] = []

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx) -> None:
        tries.append(1)
        note(ctx, f"try {len(tries)}")
        if len(tries) < 3:
            if way_out == "executescript":
                ctx.db.executescript("SELECT 1;")
            elif way_out == "execute":
                ctx.db.execute("COMMIT")
            else:
                getattr(ctx.db, way_out)()

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker() as worker:
        run = await settled(api, worker, run_id)
    assert run.state == "succeeded"
    assert api.notes() == ["try 3"]
    assert done.executions == 1


async def test_a_callback_past_its_time_limit_counts_as_raising(api, note, gate):
    """`@app.mutation(timeout_ms=...)`: then it is rolled back and counts as raising."""
    done = api.scripted("done")
    tries: list[int] = []

    @api.app.mutation(name="called_back", timeout_ms=200)
    async def callback(ctx: MutationCtx) -> None:
        tries.append(1)
        note(ctx, f"try {len(tries)}")
        if len(tries) == 1:
            await asyncio.get_running_loop().create_future()

    run_id = await api.run(api.app, done.action, on_complete=callback)
    async with api.worker():

        async def over() -> bool:
            if tries:
                api.clock.advance(1_000)
            run = await api.get(api.app, run_id)
            return run.callback.state == "done"

        await api.eventually(over, within_s=20)
    assert api.notes() == [f"try {len(tries)}"]
    assert done.executions == 1


# -- canceled, retried, cut off ----------------------------------------------------------------------------------------


async def test_the_callback_of_a_canceled_run_is_pending_until_a_worker_runs_it(api, note):
    """`cancel` commits with the caller's transaction; the callback follows, exactly once."""
    done = api.scripted("done")

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, result: Any) -> None:
        note(ctx, result.type)

    run_id = await api.run(api.app, done.action, on_complete=callback)
    assert await api.cancel(api.app, run_id)
    assert [run.id for run in (await api.list(api.app, callback="pending")).runs] == [run_id]
    with pytest.raises(RunInProgress, match="callback"):
        await api.cleanup(api.app, run_id)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
        api.clock.advance(DAY_MS)
        await worker.until_idle()
    assert api.notes() == ["canceled"]
    assert done.executions == 0


async def test_a_run_canceled_while_it_executes_calls_back_once(api, note, gate):
    """For every outcome its database writes are committed exactly once, whatever the attempt reports later."""

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, result: Any) -> None:
        note(ctx, result.type)

    @api.app.action(name="work")
    def work() -> str:
        gate.wait()
        return "too late"

    run_id = await api.run(api.app, work, on_complete=callback)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        assert await api.cancel(api.app, run_id)
        await api.eventually(api.notes)
        gate.open()
        await worker.until_idle()
        api.clock.advance(DAY_MS)
        await worker.until_idle()
    assert api.notes() == ["canceled"]


async def test_a_retried_run_calls_back_once_for_each_completion(api, note):
    """It completes again, and its callback runs once for that completion too."""
    flaky = api.scripted(ValueError("no"), "done", max_failures=0)

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, result: Any) -> None:
        note(ctx, result.type)

    run_id = await api.run(api.app, flaky.action, on_complete=callback)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
        await api.retry(api.app, run_id)
        assert await api.result(worker, run_id) == Success(return_value="done")
        await settled(api, worker, run_id)
    assert api.notes() == ["failed", "success"]


async def test_the_callback_of_a_run_past_its_deadline_runs(api, note):
    """For *every* outcome, that of a run which never began included."""
    done = api.scripted("done")

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, result: Any) -> None:
        note(ctx, result.error_type)

    run_id = await api.run(api.app, done.action, on_complete=callback, deadline_ms=1_000)
    api.clock.advance(2_000)
    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert api.notes() == ["DeadlineExceeded"]


async def test_a_callback_whose_context_no_longer_fits_stays_pending(api, note):
    """A deployment may change a callback's hints: that counts as raising, and is visible."""
    done = api.scripted("done")

    @api.app.mutation(name="called_back")
    def callback(ctx: MutationCtx, context: str) -> None: ...

    run_id = await api.run(api.app, done.action, on_complete=callback, context="seven")
    async with api.sibling() as newer:
        newer.scripted("done")

        @newer.app.mutation(name="called_back")
        def newer_callback(ctx: MutationCtx, context: int) -> None:
            note(ctx, "never")

        async with newer.worker() as worker:
            await worker.until_idle()
            run = await newer.get(newer.app, run_id)
            assert (run.state, run.callback.state) == ("succeeded", "pending")
            assert run.callback.last_error

    async with api.worker() as worker:
        await settled(api, worker, run_id)
    assert done.executions == 0
    assert api.notes() == []


@pytest.mark.crash
def test_a_process_that_dies_inside_a_callback_is_a_lost_worker(scripts):
    """A process that dies inside a callback is a lost worker, and the callback is then run alone; writes count once."""
    scripts.write(
        "job.py",
        """
        import os, pathlib
        from action_retrier import App, MutationCtx, SyncActionRetrier

        app = App("sqlite:///job.db")
        retrier = SyncActionRetrier(app, initial_backoff_ms=10)

        @app.action
        def work() -> None:
            with open("executions", "a") as file:
                file.write("x")

        @app.mutation
        def callback(ctx: MutationCtx) -> None:
            ctx.db.execute("INSERT INTO notes VALUES ('called back')")
            crashed = pathlib.Path("crashed")
            if not crashed.exists():
                crashed.touch()
                os._exit(9)
        """,
    )
    scripts.write(
        "crash.py",
        """
        import sqlite3
        from job import app, callback, retrier, work

        with app:
            sqlite3.connect("job.db").execute("CREATE TABLE notes (text TEXT)")
            print(retrier.run(app, work, on_complete=callback), flush=True)
            with app.worker() as worker:
                worker.until_idle()
        """,
    )
    scripts.write(
        "recover.py",
        """
        import sys, threading
        from job import app, retrier

        with app, app.worker():
            print(retrier.wait(app, sys.argv[1], timeout_ms=60_000))
            for _ in range(600):
                run = retrier.get(app, sys.argv[1])
                if run.callback.state == "done":
                    break
                threading.Event().wait(0.1)
            print(run.callback.state)
        """,
    )
    process = scripts.start("crash.py")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 9, err
    lines = scripts.run("recover.py", out.strip()).stdout.splitlines()
    assert lines[-1] == "done"
    with contextlib.closing(sqlite3.connect(scripts.folder / "job.db")) as connection:
        assert connection.execute("SELECT text FROM notes").fetchall() == [("called back",)]
