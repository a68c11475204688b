"""A worker among accidents: a disk that is full for a while, a damaged row, an end in a hurry. Nothing is stranded."""

import asyncio
import contextlib
import math
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from action_retrier import (
    Completed,
    DatabaseUnavailable,
    RetryAfter,
    Success,
    _claiming,
    _execution,
    _reporter,
    _worker,
)
from action_retrier._claiming import POLL_S
from action_retrier._worker import Worker
from action_retrier.drivers.postgres.leases import PostgresLeases
from action_retrier.drivers.sqlite.leases import SqliteLeases
from action_retrier.drivers.sqlite.writer import Writer

from ..support.pgbouncer import POOLED

WRITES_LOST = 3
LOOKS = 3
DISK = pytest.mark.sqlite("the disk is full for the one connection that writes")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the next writes that match fail, as on a full disk, until there is room again."""

    class FullDisk:
        refused = 0
        is_full = False

    disk = FullDisk()
    transaction = Writer._transaction

    @contextlib.contextmanager
    def failing(self: Writer, *given: Any, **options: Any) -> Iterator[sqlite3.Connection]:
        if disk.is_full:
            disk.refused += 1
            raise DatabaseUnavailable(problem="the disk is full", remedy="free some space")
        with transaction(self, *given, **options) as connection:
            yield connection

    monkeypatch.setattr(Writer, "_transaction", failing)
    return disk


@DISK
@pytest.mark.parametrize("calls_back", [False, True])
async def test_outcomes_that_could_not_be_written_are_written_later(api, full_disk, *, calls_back):
    """What has ended is reported once the disk has room again: no run stays `running`."""

    @api.app.action(name="fill")
    def fill() -> int:
        full_disk.is_full = True
        return 7

    @api.app.mutation(name="told")
    def told(ctx: Any, run_id: str) -> None:
        ctx.db.execute("INSERT INTO notes VALUES (?)", (run_id,))

    run_id = await api.run(api.app, fill, **({"on_complete": told} if calls_back else {}))
    async with api.worker() as worker:
        await api.eventually(lambda: full_disk.refused >= WRITES_LOST)
        full_disk.is_full = False
        await worker.until_idle()
        if calls_back:  # which may have met the full disk as well: then it is called again after its backoff
            await api.eventually(lambda: api.clock.advance(1_000) or api.notes())
        assert await api.status(api.app, run_id) == Completed(Success(7))
        assert (await api.get(api.app, run_id)).attempts[0].number == 1
    assert api.notes() == ([run_id] if calls_back else [])


@DISK
async def test_callbacks_that_were_claimed_are_called_though_the_disk_was_full(api, full_disk, note):
    """Promise 4: whatever fails in between, a claimed callback is called as long as its worker lives."""

    @api.app.mutation(name="told")
    def told(ctx: Any, run_id: str) -> None:
        if not full_disk.refused:
            full_disk.is_full = True
            raise ValueError("no")
        ctx.db.execute("INSERT INTO notes VALUES (?)", (run_id,))

    done = api.scripted("done")
    run_ids = [await api.run(api.app, done.action, on_complete=told) for _ in range(3)]
    await api.cancel_all(api.app, everything=True)
    async with api.worker() as worker:
        await api.eventually(lambda: full_disk.refused >= WRITES_LOST)
        full_disk.is_full = False
        for _ in range(5):
            await worker.until_idle()
            api.clock.advance(3_600_000)
        await worker.until_idle()
    assert sorted(api.notes()) == sorted(run_ids)


@pytest.mark.parametrize(("column", "error_type"), [("options", "JSONDecodeError"), ("args", "InvalidArguments")])
async def test_a_damaged_row_fails_for_good_and_blocks_no_neighbour(api, database, column, error_type):
    """It is not executed with made-up options; its result says what is wrong with it."""
    done = api.scripted("done")
    run_ids = [await api.run(api.app, done.action) for _ in range(5)]
    _damage(database, run_ids[0], column)

    async with api.worker() as worker:
        await worker.until_idle()
        status = await api.status(api.app, run_ids[0])
        results = [await api.result(worker, run_id) for run_id in run_ids[1:]]

    assert (status.result.error_type, "stored" in status.result.error) == (error_type, True)
    assert results == [Success("done")] * 4
    assert done.executions == 4


def _damage(database, run_id, column):
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(f"UPDATE action_retrier_runs SET {column} = '{{' WHERE id = ?", (run_id,))  # noqa: S608


async def test_runs_that_a_worker_owns_and_does_not_know_of_are_given_back(api, monkeypatch, caplog):
    """A safety net: whatever goes wrong between the claim's commit and the beginning, nothing stays `running`."""
    done = api.scripted("done", max_failures=0)
    run_ids = [await api.run(api.app, done.action) for _ in range(3)]
    begin, lost = _execution.Executions.begin, []

    def begin_the_second_time(self: Any, row: Any, *args: Any) -> None:
        if row["attempt"] == 1:
            lost.append(row["id"])
            raise RuntimeError("lost on its way")
        begin(self, row, *args)

    monkeypatch.setattr(_execution.Executions, "begin", begin_the_second_time)
    async with api.worker() as worker:
        for run_id in run_ids:
            await api.eventually(lambda run_id=run_id: _is(api, run_id, "succeeded"))
        await worker.until_idle()

    assert sorted(lost) == sorted(run_ids)
    assert [(await api.get(api.app, run_id)).failures for run_id in run_ids] == [0, 0, 0]
    assert "does not execute" in caplog.text


@pytest.mark.parametrize("delay_ms", [math.nan, -1, math.inf, "soon", None])
async def test_a_delay_that_is_none_is_not_taken_for_one(api, delay_ms):
    """`RetryAfter` checks its delay; a subclass may set another, and its failure is an ordinary one."""

    class Busy(RetryAfter):
        def __init__(self) -> None:
            Exception.__init__(self, "busy")
            self.delay_ms = delay_ms

    busy = api.scripted(Busy(), "done", initial_backoff_ms=1000, jitter=0)
    run_id = await api.run(api.app, busy.action)
    async with api.worker() as worker:
        await worker.until_idle()
        assert (await api.get(api.app, run_id)).attempts[0].delay_ms == 1000
        assert await api.result(worker, run_id) == Success("done")


async def test_a_deadline_passes_though_every_slot_is_taken(api):
    """`deadline_ms`: past it the run fails, whether or not anybody had the time to begin it."""
    release = threading.Event()

    @api.app.action(name="long")
    def long() -> None:
        release.wait(20)

    async with api.worker(concurrency=1):
        first = await api.run(api.app, long)
        await api.eventually(lambda: _is(api, first, "running"))
        late = await api.run(api.app, long, deadline_ms=500)
        api.clock.advance(501)
        await api.eventually(lambda: _is(api, late, "failed"))
        release.set()
    assert (await api.status(api.app, late)).result.error_type == "DeadlineExceeded"


async def test_a_callback_that_a_worker_owns_and_does_not_know_of_is_given_back(api, monkeypatch, caplog):
    """Its claim was committed, and the answer was lost on its way: the try is not counted, and the callback is called."""
    called = []

    @api.app.mutation(name="done")
    def done(run_id: str) -> None:
        called.append(run_id)

    claim = _reporter.claim_callbacks
    lost = []

    def lose_the_first(*args: Any, **kwargs: Any) -> Any:
        rows = yield from claim(*args, **kwargs)
        if rows and not lost:
            lost.extend(rows)
            return []
        return rows

    monkeypatch.setattr(_reporter, "claim_callbacks", lose_the_first)
    run_id = await api.run_after(api.app, 60_000, api.scripted("never").action, on_complete=done)
    async with api.worker():
        assert await api.cancel(api.app, run_id)
        await api.eventually(lambda: called)

    run = await api.get(api.app, run_id)
    assert (called, len(lost), run.callback.state, run.callback.tries) == ([run_id], 1, "done", 1)
    assert "does not call" in caplog.text


async def _is(api, run_id, state):
    return (await api.get(api.app, run_id)).state == state


@pytest.mark.parametrize(
    ("part", "method"),
    [
        (_worker.Worker, "_claim_once"),
        (_worker.Worker, "_watch_once"),
        (_worker.Worker, "_progress_once"),
        (_reporter.Reporter, "write_once"),
        (_reporter.Reporter, "call_back_once"),
    ],
)
async def test_an_unexpected_error_ends_no_part_of_the_worker(api, monkeypatch, part, method):
    """A part that has ended would leave a worker that looks alive, and does not do its work."""
    healthy, errors = getattr(part, method), []

    async def ill(self: Any, *args: Any) -> None:
        if len(errors) < 2:
            errors.append(LookupError("a bug of ours"))
            raise errors[-1]
        await healthy(self, *args)

    monkeypatch.setattr(part, method, ill)

    @api.app.action(name="work")
    def work() -> int:
        return 7

    @api.app.mutation(name="told")
    def told(ctx: Any, run_id: str) -> None:
        api.system.write_note(ctx.db, run_id)

    run_id = await api.run(api.app, work, on_complete=told)
    async with api.worker():
        await api.eventually(lambda: len(errors) == 2)
        await api.eventually(api.notes)
        assert await api.status(api.app, run_id) == Completed(Success(7))


async def test_a_stopped_worker_is_idle(api):
    async with api.worker() as worker:
        pass
    await worker.until_idle()


async def test_a_worker_that_has_ended_leaves_no_trace_of_itself(api, database):
    """It signs off: nobody has to find out that it is dead."""
    async with api.worker() as worker:
        await worker.until_idle()
        assert _count(database) == 1
    assert _count(database) == 0


def _count(database):
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT count(*) FROM action_retrier_workers").fetchone()[0]


async def test_a_run_that_was_never_begun_costs_nothing_however_its_worker_ends(api, database, monkeypatch):
    """I8: claimed in the worker's last moment, and given back by its sign-off."""
    done = api.scripted("done", max_failures=0)
    run_id = await api.run(api.app, done.action)
    monkeypatch.setattr(_execution.Executions, "begin", lambda *_: None)  # the claim is lost on its way
    monkeypatch.setattr(Worker, "_give_back_strays", _nothing)  # the sign-off is the last to notice
    async with api.worker():
        await api.eventually(lambda: _is(api, run_id, "running"))
    monkeypatch.undo()

    run = await api.get(api.app, run_id)
    assert (run.state, run.failures, run.attempts) == ("pending", 0, ())
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success("done")


async def _nothing(*_: Any) -> None: ...


@pytest.mark.parametrize("way", ["its run is recovered", "it is taken for dead"])
async def test_an_attempt_whose_lease_is_lost_is_told_to_stop(api, database, monkeypatch, way):
    """The run is others' now: what still executes here only does harm, and its outcome changes nothing."""
    begun, told = threading.Event(), []

    @api.app.action(name="long")
    def long(ctx: Any) -> None:
        if ctx.attempt > 1:
            return
        begun.set()
        deadline = time.monotonic() + 20
        while ctx.stop_reason is None and time.monotonic() < deadline:
            release.wait(0.01)
        told.append(ctx.stop_reason)

    release = threading.Event()
    done = api.scripted("done")
    run_id = await api.run(api.app, long)
    async with api.worker() as worker:
        assert await asyncio.to_thread(begun.wait, 20)
        if way == "it is taken for dead":
            monkeypatch.setattr(_worker, "lost_attempts", _none_are_lost)  # this way it would learn of it later
            _write(database, "DELETE FROM action_retrier_workers")
        _write(database, "UPDATE action_retrier_runs SET state = 'pending', worker = NULL, due_at = due_at + 60000000")
        await api.run(api.app, done.action)  # a worker finds out that it is taken for dead when it claims
        await api.eventually(lambda: told)
        for _ in range(10):
            api.clock.advance(60_000)
            await worker.until_idle()
        await api.eventually(lambda: _is(api, run_id, "succeeded"))

    assert told == ["lease_lost"]
    assert (await api.get(api.app, run_id)).attempts[-1].number == 2


def _none_are_lost(_attempts: Any) -> Any:
    return []
    yield


def _write(database: Any, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    "when",
    [datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), datetime.max.replace(tzinfo=UTC)],
    ids=["after it in UTC", "the last instant"],
)
async def test_an_instant_that_cannot_be_told_is_refused(api, when):
    """`when`: what `get` could not show as a datetime in UTC is a `ValueError`, and nothing is stored."""
    done = api.scripted("done")
    if when.tzinfo is UTC:
        run_id = await api.run_at(api.app, when, done.action)
        assert (await api.get(api.app, run_id)).due_at == when
        return
    with pytest.raises(ValueError, match="9999"):
        await api.run_at(api.app, when, done.action)
    assert await api.all_runs() == []


async def test_a_start_by_another_app_is_noticed_long_before_the_next_poll(api):
    """Polling is the truth, and wake-ups make it fast: an idle worker hears of commits that are not its App's."""
    begun = threading.Event()

    @api.app.action(name="quick")
    def quick() -> None:
        begun.set()

    waits_s = []
    async with api.sibling() as other, api.worker() as worker:
        for _ in range(5):
            await worker.until_idle()
            begun.clear()
            await other.run(other.app, "quick")
            since = time.monotonic()
            assert await asyncio.to_thread(begun.wait, 10)
            waits_s.append(time.monotonic() - since)
    # Through a pooler nobody hears anything, and polling has to do.
    assert statistics.median(waits_s) < (1.5 * POLL_S if POOLED in api.system.url else POLL_S / 4)


async def test_a_bug_of_ours_ends_no_worker(api, monkeypatch, caplog):
    """It is logged, and the worker goes on after a pause."""
    failed = []

    async def fail_once(self):
        if not failed:
            failed.append(1)
            raise LookupError("a bug")

    done = api.scripted("done")
    monkeypatch.setattr(_worker.Maintenance, "warn_if_due", fail_once)
    async with api.worker() as worker:
        await api.eventually(lambda: "watch: unexpected error; trying again" in caplog.text)
        assert await api.result(worker, await api.run(api.app, done.action)) == Success("done")


async def test_a_worker_whose_lease_may_have_ended_claims_nothing(api, monkeypatch):
    """I1: what it claimed it might not begin, so it would claim it and give it back, again and again."""
    looks, claims, claim_runs = [], [], _claiming.claim_runs
    monkeypatch.setattr(_claiming, "claim_runs", lambda *given: claims.append(1) or claim_runs(*given))
    done = api.scripted("done")
    async with api.worker() as worker:
        await worker.until_idle()  # it has its lease
        with monkeypatch.context() as patch:
            for leases in (SqliteLeases, PostgresLeases):
                patch.setattr(leases, "is_fresh", lambda *_: bool(looks.append(1)))
            await worker.until_idle()  # and what it has claimed since is answered
            claims.clear()
            run_id = await api.run(api.app, done.action)
            await api.eventually(lambda: len(looks) >= LOOKS)
            assert (claims, done.executions) == ([], 0)
        assert await api.result(worker, run_id) == Success("done")
    assert [attempt.number for attempt in (await api.get(api.app, run_id)).attempts] == [1]


@pytest.mark.parametrize("while_it", ["drains", "signs off"])
async def test_a_worker_whose_stop_is_canceled_holds_nothing(async_api, gate, monkeypatch, while_it):
    """Else its runs would be nobody's: it does not execute them, and its lease says that it lives."""
    api, signs_off = async_api, asyncio.Event()

    async def sign_off(_):
        signs_off.set()
        await asyncio.get_running_loop().create_future()

    @api.app.action(name="wait")
    async def wait(ctx: Any) -> int:
        if ctx.attempt == 1:
            await gate.wait_async()
        return int(ctx.attempt)

    run_id = await api.run(api.app, wait)
    async with api.worker(grace_ms=600_000) as worker:
        await gate.until_reached()
        with monkeypatch.context() as patch:
            if while_it == "signs off":
                patch.setattr(_worker.Worker, "_sign_off", sign_off)
                worker.itself.hurry()
            stopping = asyncio.ensure_future(worker.itself.stop())
            await (signs_off.wait() if while_it == "signs off" else asyncio.sleep(0))
            stopping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopping

    async with api.worker():
        await api.eventually(lambda: api.clock.advance(60_000) or _is(api, run_id, "succeeded"))
    assert (await api.get(api.app, run_id)).result == Success(2)


@DISK
async def test_a_worker_that_cannot_sign_off_leaves_its_runs_to_others(api, full_disk, monkeypatch, caplog):
    """It ends all the same, and its lease with it: nobody waits for what it could not write."""
    monkeypatch.setattr(_worker, "_FLUSH_GRACE_S", 0.1)

    @api.app.action(name="fill")
    def fill(ctx: Any) -> int:
        full_disk.is_full = ctx.attempt == 1
        return ctx.attempt

    run_id = await api.run(api.app, fill)
    async with api.worker():
        await api.eventually(lambda: full_disk.refused)
    assert "could not sign off: the disk is full" in caplog.text

    full_disk.is_full = False
    async with api.worker():
        await api.eventually(lambda: api.clock.advance(60_000) or _is(api, run_id, "succeeded"))
    run = await api.get(api.app, run_id)
    assert ([attempt.error_type for attempt in run.attempts], run.result) == (["WorkerLost", None], Success(2))
