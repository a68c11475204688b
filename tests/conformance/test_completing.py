"""The end of a run and its callback are one transaction, whatever the callback does."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from action_retrier import errors
from action_retrier._lifecycle import Raised
from action_retrier._ops.control import cancel_run, clean_up_run, retry_run
from action_retrier._ops.reads import read_status
from action_retrier._ops.starts import start_runs
from action_retrier._statements import Op
from action_retrier.results import Canceled, Completed, Failed, InProgress, Success

from ..stores import NAMESPACE
from .bench import SHARED, Bench, isolations

pytestmark = pytest.mark.usefixtures("no_tasks_left")


@isolations
@pytest.mark.parametrize("flavour", ["def", "async def"])
async def test_outcome_and_callback_commit_together(bench: Bench, isolation: Any, flavour: str) -> None:
    """I4: nobody ever sees one without the other, and the callback gets what it names."""
    seen: list[Any] = []

    def look(ctx: Any, run_id: str, result: Any, context: Any) -> None:
        seen.append((run_id, result, context))
        bench.note(ctx, "called")
        seen.append((bench.state(row), bench.notes))

    async def look_async(ctx: Any, run_id: str, result: Any, context: Any) -> None:
        look(ctx, run_id, result, context)

    bench.callback(look if flavour == "def" else look_async, isolation=isolation)
    row = bench.claimed(context='{"mail": 1}')

    await bench.complete([row])

    assert seen == [(row["id"], Success("ok"), {"mail": 1}), (("running", "none", 0), [])]
    assert (bench.state(row), bench.notes) == (("succeeded", "done", 1), ["called"])


async def test_inside_the_callback_the_status_says_completed(bench: Bench) -> None:
    """The outcome is written before the callback is called, in the same transaction."""
    seen = []

    async def look(ctx: Any, run_id: str) -> None:
        seen.append(await ctx._transaction.run(read_status(NAMESPACE, run_id)))
        seen.append(bench.store.read(read_status, NAMESPACE, run_id))

    bench.callback(look)

    await bench.completion.complete([bench.report(bench.claimed())])

    assert seen == [Completed(Success("ok")), InProgress()]


@isolations
@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration()], ids=repr
)
async def test_a_callback_that_raises_undoes_its_writes_and_nothing_else(
    bench: Bench, isolation: Any, error: BaseException
) -> None:
    """I3, I4: the outcome stays, and the callback alone is tried again, whatever it raised."""

    def fail(ctx: Any) -> None:
        bench.note(ctx, "undone")
        raise error

    bench.callback(fail, isolation=isolation)
    row = bench.claimed()

    await bench.complete([row])

    assert (bench.state(row), bench.notes) == (("succeeded", "pending", 1), [])
    stored = bench.store.row(row["id"])
    assert type(error).__name__ in stored["callback_error"] or "RuntimeError" in stored["callback_error"]
    assert stored["callback_due_at"] > bench.store.clock.now_us()


@isolations
async def test_one_bad_callback_spoils_no_neighbour(bench: Bench, isolation: Any) -> None:
    """I4: in a batch each callback has its own savepoint, or its own transaction."""

    def sometimes(ctx: Any, context: Any) -> None:
        bench.note(ctx, f"{context}")
        if context % 2:
            raise ValueError(context)

    bench.callback(sometimes, isolation=isolation)
    rows = [bench.claimed(context=str(number)) for number in range(5)]

    await bench.complete(rows)

    assert bench.notes == ["0", "2", "4"]
    assert [bench.state(row)[:2] for row in rows] == [("succeeded", ("done", "pending")[n % 2]) for n in range(5)]


async def test_callbacks_that_opted_in_share_a_transaction(bench: Bench) -> None:
    """Group commit for callbacks: the first one's writes are not committed while the second runs."""
    seen = []

    def look(ctx: Any, context: Any) -> None:
        seen.append(bench.notes)
        bench.note(ctx, context)

    bench.callback(look, isolation=SHARED)
    rows = [bench.claimed(context=f'"{text}"') for text in "ab"]

    await bench.complete(rows)

    assert (seen, bench.notes) == ([[], []], ["a", "b"])


@pytest.mark.parametrize(("each_takes_s", "transactions"), [(0.0, 1), (0.1, 3)], ids=["quick", "slow"])
async def test_callbacks_that_take_long_do_not_keep_one_transaction_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, each_takes_s: float, transactions: int
) -> None:
    """Nor do many that were quick until now: on SQLite nobody else can write meanwhile."""
    loop, passed_s, seen = asyncio.get_running_loop(), [0.0], set()
    monkeypatch.setattr(loop, "time", lambda time=loop.time: time() * 1e-6 + passed_s[0])

    def take_long(ctx: Any, run_id: str) -> None:
        seen.add(len(bench.notes))  # which others have committed
        bench.note(ctx, run_id)
        passed_s[0] += each_takes_s

    bench.callback(take_long, isolation=SHARED)
    rows = [bench.claimed() for _ in range(30)]

    await bench.complete(rows)

    assert seen == {30 // transactions * number for number in range(transactions)}
    assert bench.notes == [row["id"] for row in rows]


def _cleaned(run_id: str) -> Op[Any]:
    return clean_up_run(NAMESPACE, run_id, discard_callback=False)


def _retried(run_id: str) -> Op[Any]:
    return retry_run(NAMESPACE, run_id)


@isolations
@pytest.mark.parametrize("touch", [_cleaned, _retried])
async def test_a_callback_keeps_off_a_run_whose_own_callback_is_still_to_come(
    bench: Bench, isolation: Any, touch: Any
) -> None:
    """I4: also where both share a transaction, in which the other one may raise, and is then tried again."""
    seen: list[Any] = []

    async def meddle(ctx: Any, context: Any) -> None:
        bench.note(ctx, "meddled")
        (other,) = (run["id"] for run in bench.store.system.table("runs") if run["on_complete"] == "done")
        await ctx._transaction.run(touch(other))

    async def fail(ctx: Any, run_id: str) -> None:
        seen.append(await ctx._transaction.run(read_status(NAMESPACE, run_id)))
        raise ValueError

    bench.callback(meddle, "meddling", isolation=isolation)
    bench.callback(fail, isolation=isolation)
    rows = [bench.claimed(name) for name in ("meddling", "done")]
    reports = [bench.report(row, Raised("builtins.ValueError", "no", retryable=False)) for row in rows]

    await bench.completion.complete(reports)

    assert bench.notes == []
    assert [bench.state(row) for row in rows] == [("failed", "pending", 1)] * 2
    assert all(isinstance(status, Completed) for status in seen)
    assert "RunInProgress" in bench.store.row(rows[0]["id"])["callback_error"]


async def test_a_callback_may_clean_up_its_own_run_beside_others(bench: Bench) -> None:
    """They share a transaction, and each is called once."""
    called: list[str] = []

    async def clean_up(ctx: Any, run_id: str, context: Any) -> None:
        called.append(context)
        await ctx._transaction.run(_cleaned(run_id))
        bench.note(ctx, context)

    bench.callback(clean_up, isolation=SHARED)
    rows = [bench.claimed(context=f'"{text}"') for text in "abc"]

    await bench.complete(rows)

    assert (called, bench.notes, bench.store.system.table("runs")) == (["a", "b", "c"], ["a", "b", "c"], [])


async def test_serializable_callbacks_have_a_transaction_each(bench: Bench) -> None:
    seen = []

    def look(ctx: Any, context: Any) -> None:
        seen.append(bench.notes)
        bench.note(ctx, context)

    bench.callback(look)
    rows = [bench.claimed(context=f'"{text}"') for text in "ab"]

    await bench.complete(rows)

    assert seen == [[], ["a"]]


@isolations
async def test_a_superseded_attempt_calls_nothing_back(bench: Bench, isolation: Any) -> None:
    """I2, I4: no fence, no callback."""
    called = []
    bench.callback(lambda: called.append(1), isolation=isolation)
    rows = [bench.claimed() for _ in range(2)]
    for row in rows:
        bench.store.write(cancel_run, NAMESPACE, row["id"])
    before = bench.store.snapshot()

    await bench.complete(rows)

    assert called == []
    assert bench.store.snapshot() == before


@isolations
async def test_completing_twice_calls_back_once(bench: Bench, isolation: Any) -> None:
    """I4: a report repeated after an unknown commit result is resolved by the fence."""
    bench.callback(lambda ctx, run_id: bench.note(ctx, run_id), isolation=isolation)
    row = bench.claimed()

    for _ in range(2):
        await bench.complete([row])

    assert (bench.notes, bench.state(row)) == ([row["id"]], ("succeeded", "done", 1))


async def test_a_commit_whose_result_is_unknown_calls_back_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """I4: the commit went through, its answer did not: nothing is written or called a second time."""
    bench.callback(lambda ctx, run_id: bench.note(ctx, run_id))
    row = bench.claimed()
    transaction = bench.store.database.transaction

    @contextlib.asynccontextmanager
    async def lossy(*args: Any, **options: Any) -> AsyncIterator[Any]:
        async with transaction(*args, **options) as one:
            yield one
        raise errors.DatabaseUnavailable(problem="the answer was lost", remedy="ask again")

    monkeypatch.setattr(bench.store.database, "transaction", lossy)

    await bench.complete([row])

    assert (bench.notes, bench.state(row)) == ([row["id"]], ("succeeded", "done", 1))


async def test_a_transaction_that_does_not_commit_leaves_the_outcome_with_a_pending_callback(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3, I4: the outcome is committed alone, and the action is never run again because of its callback."""
    bench.callback(lambda ctx, run_id: bench.note(ctx, run_id))
    row = bench.claimed()
    transaction = bench.store.database.transaction

    @contextlib.asynccontextmanager
    async def failing(*args: Any, **options: Any) -> AsyncIterator[Any]:
        async with transaction(*args, **options) as one:
            yield one
            raise errors.DatabaseUnavailable(problem="it could not be committed", remedy="try again")

    monkeypatch.setattr(bench.store.database, "transaction", failing)

    await bench.complete([row])

    assert (bench.notes, bench.state(row)) == ([], ("succeeded", "pending", 1))


SMUGGLED: dict[str, Callable[[Any], object]] = {
    "db.commit()": lambda db: db.commit(),
    "db.rollback()": lambda db: db.rollback(),
    "COMMIT": lambda db: db.execute("COMMIT"),
    "commit ;": lambda db: db.execute("  commit ; "),
    "/* */ END": lambda db: db.execute("/* a comment */ END TRANSACTION"),
    "ROLLBACK": lambda db: db.execute("ROLLBACK"),
}


@isolations
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
@pytest.mark.parametrize("smuggle", SMUGGLED.values(), ids=SMUGGLED)
async def test_a_callback_cannot_end_the_transaction(
    bench: Bench, isolation: Any, smuggle: Callable[[Any], object], *, swallowed: bool
) -> None:
    """I4: a commit smuggled in is an error, also where its own error is swallowed; nothing commits."""
    await bench.check_that_cheating_fails(smuggle, isolation=isolation, swallowed=swallowed)


async def test_a_callback_that_closes_the_connection_hurts_only_itself(bench: Bench) -> None:
    bench.callback(lambda ctx: ctx.db.close())
    bench.callback(lambda ctx: bench.note(ctx, "honest"), "honest")
    rows = [bench.claimed("done"), bench.claimed("honest")]

    await bench.complete(rows)

    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "pending"), ("succeeded", "done")]
    assert bench.notes == ["honest"]


async def test_settings_that_a_callback_makes_on_the_connection_are_its_own(bench: Bench) -> None:
    """Rows come to us as they are, whatever factory user code has set."""

    def setting(ctx: Any) -> None:
        ctx.db.row_factory = lambda *_: 1 / 0

    bench.callback(setting)
    rows = [bench.claimed(), bench.claimed()]

    await bench.complete(rows)

    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "done")] * 2
    assert bench.store.status(bench.store.start()) == InProgress()


async def test_a_callback_may_use_savepoints_of_its_own(bench: Bench) -> None:
    def nested(ctx: Any) -> None:
        bench.note(ctx, "kept")
        ctx.db.execute("SAVEPOINT mine")
        bench.note(ctx, "undone")
        ctx.db.execute("ROLLBACK TO mine")
        ctx.db.execute("RELEASE mine")

    bench.callback(nested)
    row = bench.claimed()

    await bench.complete([row])

    assert (bench.notes, bench.state(row)[:2]) == (["kept"], ("succeeded", "done"))


async def test_a_callback_may_start_and_cancel_runs_in_its_transaction(bench: Bench) -> None:
    """I6: what a callback starts exists when the callback is done, and not before."""
    start = bench.store.starting()

    async def more(ctx: Any, run_id: str) -> None:
        await ctx._transaction.run(start_runs(NAMESPACE, [start]))
        assert await ctx._transaction.run(cancel_run(NAMESPACE, run_id)) is False
        assert len(bench.store.system.table("runs")) == 1

    bench.callback(more)
    row = bench.claimed()

    await bench.complete([row])

    assert bench.state(row) == ("succeeded", "done", 1)
    assert bench.store.status(start.id) == InProgress()


# Time limits.


async def test_an_async_callback_that_takes_too_long_is_rolled_back(bench: Bench) -> None:
    """Past `timeout_ms` it counts as raising."""
    begun = asyncio.Event()

    async def slow(ctx: Any) -> None:
        bench.note(ctx, "undone")
        begun.set()
        await asyncio.Event().wait()

    bench.callback(slow, timeout_ms=5000)
    row = bench.claimed()
    task = asyncio.create_task(bench.complete([row]))
    await begun.wait()
    bench.store.clock.advance(4999)
    assert bench.state(row) == ("running", "none", 0)
    bench.store.clock.advance(1)
    await task

    assert (bench.notes, bench.state(row)) == ([], ("succeeded", "pending", 1))
    assert "took longer than timeout_ms=5000" in bench.store.row(row["id"])["callback_error"]


async def test_a_callback_that_takes_too_long_spoils_no_neighbour_in_its_transaction(bench: Bench) -> None:
    """I4: it is pending, with what it wrote undone, and the others are done."""
    begun = asyncio.Event()

    async def slow(ctx: Any, context: Any) -> None:
        bench.note(ctx, context)
        if context == "slow":
            begun.set()
            await asyncio.Event().wait()

    bench.callback(slow, timeout_ms=5000, isolation=SHARED)
    rows = [bench.claimed(context=f'"{text}"') for text in ("before", "slow", "after")]
    task = asyncio.create_task(bench.complete(rows))
    await begun.wait()
    bench.store.clock.advance(5000)
    await task

    assert bench.notes == ["before", "after"]
    assert [bench.state(row)[:2] for row in rows] == [("succeeded", word) for word in ("done", "pending", "done")]


async def test_a_callback_in_a_thread_that_does_not_return_is_abandoned(bench: Bench) -> None:
    """Its connection is taken away: it neither blocks other writers nor writes anything later."""
    loop, begun, free, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), threading.Event()
    later: list[Any] = []

    def stuck(ctx: Any) -> None:
        db = ctx.db
        bench.note(ctx, "undone")
        loop.call_soon_threadsafe(begun.set)
        free.wait()
        for use in (partial(bench.store.system.write_note, db, "too late"), partial(db.execute, "COMMIT")):
            try:
                later.append(use())
            except Exception as error:  # noqa: BLE001 - which one is not the point
                later.append(error)
        ended.set()

    bench.callback(stuck, timeout_ms=5000)
    row = bench.claimed()
    task = asyncio.create_task(bench.complete([row]))
    await begun.wait()
    bench.store.clock.advance(5000)
    await task

    assert bench.state(row) == ("succeeded", "pending", 1)
    run_id = bench.store.start()
    free.set()
    assert await asyncio.to_thread(ended.wait, 30)
    assert all(isinstance(one, Exception) for one in later)
    assert bench.notes == []
    assert bench.store.status(run_id) == InProgress()


@pytest.mark.parametrize("count", [1, 2])
@isolations
async def test_a_canceled_completion_leaves_the_run_to_recovery(bench: Bench, isolation: Any, count: int) -> None:
    """I1: the worker is being canceled, not the callback: nothing is written, and the run is still owned."""
    begun = asyncio.Event()

    async def slow(ctx: Any) -> None:
        bench.note(ctx, "undone")
        begun.set()
        await asyncio.Event().wait()

    bench.callback(slow, isolation=isolation)
    rows = [bench.claimed() for _ in range(count)]
    task = asyncio.create_task(bench.complete(rows))
    await begun.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (bench.notes, [bench.state(row) for row in rows]) == ([], [("running", "none", 0)] * count)
    assert bench.worker is not None
    assert bench.store.lose(bench.worker) == count


# Callbacks by themselves.


async def owed(bench: Bench, end: str) -> Any:
    """Have a run end, and claim its pending callback."""
    row = bench.claimed(max_failures=0, context="7")
    assert bench.worker is not None
    match end:
        case "succeeded":
            await bench.completion.write([bench.report(row)])
        case "failed":
            await bench.completion.write([bench.report(row, Raised("E", "e"))])
        case "canceled":
            bench.store.write(cancel_run, NAMESPACE, row["id"])
    (claimed,) = bench.store.claim_callbacks(bench.worker)
    return claimed


@pytest.mark.parametrize(
    ("end", "result"), [("succeeded", Success("ok")), ("failed", Failed("e", "E")), ("canceled", Canceled())]
)
async def test_a_pending_callback_is_called_with_the_result(bench: Bench, end: str, result: Any) -> None:
    seen = []

    def look(ctx: Any, result: Any, context: Any) -> None:
        seen.append((result, context, bench.state(row)))
        bench.note(ctx, "called")

    bench.callback(look)
    row = await owed(bench, end)
    assert bench.worker is not None

    await bench.completion.call_back(row, bench.worker.id)

    assert seen == [(result, 7, (end, "pending", 1))]
    assert (bench.notes, bench.state(row)) == (["called"], (end, "done", 1))


async def test_a_pending_callback_that_raises_waits_for_its_next_try(bench: Bench) -> None:
    """I4: its writes roll back, the mark with them, and it is tried until it commits."""
    tries = []

    def third_time(ctx: Any) -> None:
        bench.note(ctx, "called")
        tries.append(1)
        if len(tries) < 3:
            raise ValueError(len(tries))

    bench.callback(third_time)
    row = await owed(bench, "canceled")
    assert bench.worker is not None
    for number in (1, 2):
        await bench.completion.call_back(row, bench.worker.id)
        assert (bench.notes, bench.state(row)) == ([], ("canceled", "pending", number))
        assert bench.store.row(row["id"])["callback_error"] == f"ValueError: {number}"
        bench.store.clock.advance(1000)
        (row,) = bench.store.claim_callbacks(bench.worker)

    await bench.completion.call_back(row, bench.worker.id)

    assert (bench.notes, bench.state(row)) == (["called"], ("canceled", "done", 3))


async def test_a_callback_whose_worker_is_cut_off_is_no_failed_try(bench: Bench) -> None:
    """A cancellation of the task that calls it is none of the callback's: what it wrote is undone, and it stays claimed."""
    begun = asyncio.Event()

    async def wait(ctx: Any) -> None:
        bench.note(ctx, "called")
        begun.set()
        await asyncio.get_running_loop().create_future()

    bench.callback(wait)
    row = await owed(bench, "canceled")
    assert bench.worker is not None
    before = bench.store.snapshot()
    calling = asyncio.create_task(bench.completion.call_back(row, bench.worker.id))
    await asyncio.wait_for(begun.wait(), 30)

    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling

    assert (bench.notes, bench.store.snapshot()) == ([], before)


async def test_a_try_that_is_no_longer_the_current_one_calls_nothing(bench: Bench) -> None:
    """I4: the mark comes first, under the try's fence; without it there is no call."""
    called = []
    bench.callback(lambda: called.append(1))
    row = await owed(bench, "canceled")
    zombie = bench.worker
    assert zombie is not None
    bench.store.lose(zombie)
    before = bench.store.snapshot()

    await bench.completion.call_back(row, zombie.id)

    assert called == []
    assert bench.store.snapshot() == before


async def test_a_broken_error_message_does_not_lose_the_callback(bench: Bench) -> None:
    """Recording a failure must never fail."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise self

    class Ugly(Exception):
        def __str__(self) -> str:
            return "a NUL \0, a lone surrogate \ud800, and much" + "!" * 100_000

    def failing(error: Exception) -> Callable[[Any], None]:
        def fail(ctx: Any) -> None:
            raise error

        return fail

    bench.callback(failing(Broken()), "broken")
    bench.callback(failing(Ugly()), "ugly")
    rows = [bench.claimed("broken"), bench.claimed("ugly")]

    await bench.complete(rows)

    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "pending")] * 2
    text = bench.store.row(rows[1]["id"])["callback_error"]
    assert "a NUL ␀, a lone surrogate ?" in text
    assert len(text.encode()) <= 16 * 1024


async def test_a_suspects_outcome_is_committed_before_its_callback(bench: Bench) -> None:
    """A callback may be what killed the worker: it is called alone, in a transaction of its own."""
    bench.callback(lambda ctx: bench.note(ctx, "called"))
    row = bench.claimed(initial_backoff_ms=0)
    assert bench.worker is not None
    bench.store.lose(bench.worker)
    bench.worker = bench.store.worker(mutations=("done",))
    row = bench.store.claim_one(bench.worker)
    report = bench.report(row)
    assert not report.calls_back

    await bench.completion.write([report])

    assert (bench.notes, bench.state(row)) == ([], ("succeeded", "pending", 0))


async def test_only_an_end_calls_back(bench: Bench) -> None:
    """I4: an attempt that is retried owes nothing."""
    bench.callback(lambda ctx: bench.note(ctx, "called"))
    row = bench.claimed()
    report = bench.report(row, Raised("E", "e"))
    assert not report.calls_back

    await bench.completion.write([report])

    assert (bench.notes, bench.state(row)) == ([], ("pending", "none", 0))
