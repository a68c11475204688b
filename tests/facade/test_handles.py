"""`ctx` is whatever holds the transaction in which a call should happen."""

import asyncio
import contextlib
import re
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from action_retrier import (
    ActionCtx,
    App,
    Call,
    Canceled,
    Completed,
    Failed,
    IdempotencyConflict,
    InProgress,
    InvalidContext,
    MutationCtx,
    RetrierError,
    RunInProgress,
    RunNotFound,
    Success,
    SyncActionCtx,
    SyncActionRetrier,
)

pytestmark = pytest.mark.sqlite("the handle is sqlite3.Connection; test_every_handle.py has all others")

HOLDERS = ["MutationCtx", "sqlite3.Connection", "sqlite3.Connection with BEGIN IMMEDIATE"]


class Rollback(Exception):
    """Raised by a test to leave a transaction."""


@contextlib.asynccontextmanager
async def open_transaction(api: Any, holder: str, *, commit: bool = True):
    """Give a handle whose transaction commits, or rolls back, at the end of the block."""
    if holder == "MutationCtx":
        with contextlib.suppress(Rollback):
            async with api.transaction() as ctx:
                yield ctx
                if not commit:
                    raise Rollback
        return
    options = {} if holder == "sqlite3.Connection" else {"isolation_level": None}
    async with api.connection(**options) as connection:
        if options:
            await api.call(connection.execute, "BEGIN IMMEDIATE")
        yield connection
        await api.call(connection.commit if commit else connection.rollback)


def execute(api: Any, handle: Any, sql: str) -> Any:
    """Execute SQL through a handle, in its own thread."""
    return api.call(getattr(handle, "db", handle).execute, sql)


@pytest.fixture(params=HOLDERS)
def holder(request):
    return request.param


# -- one fate with the user's own writes -------------------------------------------------------------------------------


async def test_the_call_commits_with_the_users_own_writes(api, holder, note):
    """Then the call commits or rolls back with the user's own writes."""
    done = api.scripted("done")
    async with open_transaction(api, holder) as handle:
        await api.call(note, handle, "mine")
        run_id = await api.run(handle, done.action)
        async with api.connection() as outside:
            with pytest.raises(RunNotFound):
                await api.status(outside, run_id)
        assert api.notes() == []
    assert api.notes() == ["mine"]
    assert await api.status(api.app, run_id) == InProgress()


async def test_the_call_rolls_back_with_the_users_own_writes(api, holder, note):
    """Nothing started by a rolled back transaction exists."""
    done = api.scripted("done")
    async with open_transaction(api, holder, commit=False) as handle:
        await api.call(note, handle, "mine")
        runs = [
            await api.run(handle, done.action),
            await api.run_after(handle, 0, done.action),
            await api.run_at(handle, api.clock.now(), done.action),
            *await api.run_many(handle, [Call(done.action), Call(done.action)]),
        ]
    assert api.notes() == []
    for run_id in runs:
        with pytest.raises(RunNotFound):
            await api.status(api.app, run_id)
    async with api.worker() as worker:
        await worker.until_idle()
    assert done.executions == 0


async def test_a_user_may_write_after_the_call_too(api, holder, note):
    """The handle is the user's: its transaction goes on after the call."""
    done = api.scripted("done")
    async with open_transaction(api, holder) as handle:
        run_id = await api.run(handle, done.action)
        await api.call(note, handle, "afterwards")
        await api.run(handle, done.action)
    assert api.notes() == ["afterwards"]
    assert await api.status(api.app, run_id) == InProgress()


async def test_no_action_starts_before_the_commit(api, holder):
    """... no action starts before that commit."""
    done = api.scripted("done")
    async with api.worker() as worker:
        async with open_transaction(api, holder) as handle:
            run_id = await api.run(handle, done.action)
            async with api.connection() as outside:
                assert (await api.list(outside)).runs == []
            assert done.executions == 0
        assert await api.wait(api.app, run_id) == Success(return_value="done")
        await worker.until_idle()
    assert done.executions == 1


async def test_a_rolled_back_run_is_never_executed_by_a_running_worker(api, holder):
    """Nothing started by a rolled back transaction exists."""
    done = api.scripted("done")
    async with api.worker() as worker:
        async with open_transaction(api, holder, commit=False) as handle:
            await api.run(handle, done.action)
        await worker.until_idle()
        api.clock.advance(60_000)
        await worker.until_idle()
    assert done.executions == 0


async def test_a_transaction_sees_what_it_has_started(api, holder):
    """Inside the transaction the run exists already: same handle, same view."""
    done = api.scripted("done")
    async with open_transaction(api, holder) as handle:
        run_id = await api.run(handle, done.action, {}, idempotency_key="k")
        assert await api.status(handle, run_id) == InProgress()
        assert (await api.get(handle, run_id)).state == "pending"
        assert [run.id for run in (await api.list(handle)).runs] == [run_id]
        assert await api.run(handle, done.action, {}, idempotency_key="k") == run_id


async def test_a_conflict_inside_a_transaction_stores_nothing_of_its_call(api, holder, note):
    """With other args `IdempotencyConflict`, nothing stored: also if the user catches it and commits."""

    @api.app.action(name="charge")
    def charge(order_id: int) -> None: ...

    first = await api.run(api.app, charge, {"order_id": 1}, idempotency_key="k")
    async with open_transaction(api, holder) as handle:
        await api.call(note, handle, "mine")
        calls = [Call(charge, {"order_id": 7}), Call(charge, {"order_id": 2}, idempotency_key="k")]
        with pytest.raises(IdempotencyConflict):
            await api.run_many(handle, calls)
        second = await api.run(handle, charge, {"order_id": 8})
    assert api.notes() == ["mine"]
    assert {run.id for run in await api.all_runs()} == {first, second}


async def test_a_rolled_back_idempotency_key_is_free(api, holder):
    """A rolled back start holds nothing."""
    done = api.scripted("done")
    async with open_transaction(api, holder, commit=False) as handle:
        rolled_back = await api.run(handle, done.action, idempotency_key="k")
    assert await api.run(api.app, done.action, idempotency_key="k") != rolled_back


async def test_a_cancel_holds_from_the_commit(api, holder):
    """... and `cancel`'s True holds from that commit."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with open_transaction(api, holder) as handle:
        assert await api.cancel(handle, run_id) is True
        assert await api.status(handle, run_id) == Completed(result=Canceled())
        async with api.connection() as outside:
            assert await api.status(outside, run_id) == InProgress()
    assert await api.status(api.app, run_id) == Completed(result=Canceled())


async def test_a_rolled_back_cancel_canceled_nothing(api, holder):
    """... holds from that commit, and so not without one."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with open_transaction(api, holder, commit=False) as handle:
        assert await api.cancel(handle, run_id) is True
    assert await api.status(api.app, run_id) == InProgress()
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")


@pytest.mark.parametrize("commit", [True, False], ids=["commit", "rollback"])
async def test_a_report_waits_for_an_open_cancel(api, holder, gate, commit):
    """`cancel`'s True holds from the commit, also if the attempt ends while the transaction is open."""

    @api.app.action(name="work")
    def work() -> str:
        gate.wait()
        return "done"

    run_id = await api.run(api.app, work)
    async with api.worker(grace_ms=20_000) as worker:
        await gate.until_reached()
        async with open_transaction(api, holder, commit=commit) as handle:
            assert await api.cancel(handle, run_id) is True
            gate.open()
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.2)
        await worker.until_idle()
    expected = Canceled() if commit else Success(return_value="done")
    assert await api.status(api.app, run_id) == Completed(result=expected)


async def test_a_rolled_back_cleanup_removed_nothing(api, holder):
    """Every verb shares the fate of its transaction."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
    async with open_transaction(api, holder, commit=False) as handle:
        await api.cleanup(handle, run_id)
        with pytest.raises(RunNotFound):
            await api.status(handle, run_id)
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))


async def test_a_rolled_back_retry_retried_nothing(api, holder):
    """Every verb shares the fate of its transaction."""
    broken = api.scripted(ValueError("no"), max_failures=0)
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await worker.until_idle()
        async with open_transaction(api, holder, commit=False) as handle:
            assert await api.retry(handle, run_id) == run_id
            assert await api.status(handle, run_id) == InProgress()
        await worker.until_idle()
    assert broken.executions == 1
    assert isinstance((await api.status(api.app, run_id)).result, Failed)


async def test_bulk_verbs_roll_back_too(api, holder):
    """`cancel_all` and `retry_all` in a transaction."""
    done = api.scripted("done")
    canceled = await api.run(api.app, done.action)
    await api.cancel(api.app, canceled)
    pending = await api.run(api.app, done.action)
    async with open_transaction(api, holder, commit=False) as handle:
        assert await api.cancel_all(handle, everything=True) == 1
        assert await api.retry_all(handle, everything=True) == 2
    assert await api.status(api.app, canceled) == Completed(result=Canceled())
    assert await api.status(api.app, pending) == InProgress()


async def test_a_rollback_to_a_savepoint_takes_back_what_came_after_it(api, note):
    """Nothing started by a rolled back transaction exists; a savepoint is a part of one."""
    done = api.scripted("done")
    async with api.connection(isolation_level=None) as connection:
        await execute(api, connection, "BEGIN IMMEDIATE")
        kept = await api.run(connection, done.action)
        await execute(api, connection, "SAVEPOINT inner_block")
        await api.call(note, connection, "lost")
        lost = await api.run(connection, done.action)
        assert await api.cancel(connection, kept) is True
        await execute(api, connection, "ROLLBACK TO inner_block")
        await execute(api, connection, "RELEASE inner_block")
        await execute(api, connection, "COMMIT")
    assert api.notes() == []
    assert await api.status(api.app, kept) == InProgress()
    with pytest.raises(RunNotFound):
        await api.status(api.app, lost)


async def test_a_savepoint_alone_is_a_transaction(api):
    """In autocommit mode SAVEPOINT opens a transaction, that the outermost RELEASE commits."""
    done = api.scripted("done")
    async with api.connection(isolation_level=None) as connection:
        await execute(api, connection, "SAVEPOINT outer_block")
        run_id = await api.run(connection, done.action)
        await execute(api, connection, "RELEASE outer_block")
    assert await api.status(api.app, run_id) == InProgress()


# -- app and ActionCtx -------------------------------------------------------------------------------------------------


async def test_app_is_a_transaction_of_its_own(api):
    """The `app` itself (a transaction of its own): committed when the call returns."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.connection() as outside:
        assert await api.status(outside, run_id) == InProgress()


async def test_an_action_starts_others_through_its_context(api):
    """An `ActionCtx` (likewise): a transaction of its own, committed though the action then fails."""
    child = api.scripted("child")
    started: list[str] = []

    if api.is_async:

        @api.app.action(name="parent", max_failures=0)
        async def parent(ctx: ActionCtx) -> None:
            run_id = await api.retrier.run(ctx, child.action)
            started.append(run_id)
            assert await api.retrier.status(ctx, run_id) == InProgress()
            raise ValueError
    else:

        @api.app.action(name="parent", max_failures=0)
        def parent(ctx: SyncActionCtx) -> None:
            run_id = api.retrier.run(ctx, child.action)
            started.append(run_id)
            raise ValueError

    parent_id = await api.run(api.app, parent)
    async with api.worker(concurrency=1) as worker:  # so that the child waits for its parent
        result = await api.result(worker, parent_id)
        assert result.error_type == "ValueError"
        assert await api.result(worker, started[0]) == Success(return_value="child")


async def test_an_action_waits_for_another_through_its_context(api):
    """An action holds no transaction, so it may wait."""
    child = api.scripted("child")

    if api.is_async:

        @api.app.action(name="parent", max_failures=0)
        async def parent(ctx: ActionCtx) -> Any:
            result = await api.retrier.wait(ctx, await api.retrier.run(ctx, child.action))
            return result.return_value
    else:

        @api.app.action(name="parent", max_failures=0)
        def parent(ctx: SyncActionCtx) -> Any:
            return api.retrier.wait(ctx, api.retrier.run(ctx, child.action)).return_value

    parent_id = await api.run(api.app, parent)
    async with api.worker() as worker:
        assert await api.result(worker, parent_id) == Success(return_value="child")


async def test_an_action_may_start_itself_again(api):
    """A run may start a run of the same action."""
    calls: list[int] = []

    if api.is_async:

        @api.app.action(name="countdown")
        async def countdown(ctx: ActionCtx, number: int) -> None:
            calls.append(number)
            if number:
                await api.retrier.run(ctx, "countdown", {"number": number - 1})
    else:

        @api.app.action(name="countdown")
        def countdown(ctx: SyncActionCtx, number: int) -> None:
            calls.append(number)
            if number:
                api.retrier.run(ctx, "countdown", {"number": number - 1})

    await api.run(api.app, countdown, {"number": 3})
    async with api.worker() as worker:
        await worker.until_idle()
    assert calls == [3, 2, 1, 0]


async def test_app_inside_an_action_is_fine(api):
    """Only an open *transaction* makes `app` wrong; an action is none."""
    child = api.scripted("child")

    if api.is_async:

        @api.app.action(name="parent", max_failures=0)
        async def parent() -> str:
            return await api.retrier.run(api.app, child.action)
    else:

        @api.app.action(name="parent", max_failures=0)
        def parent() -> str:
            return api.retrier.run(api.app, child.action)

    parent_id = await api.run(api.app, parent)
    async with api.worker() as worker:
        result = await api.result(worker, parent_id)
        assert await api.result(worker, result.return_value) == Success(return_value="child")


# -- a mutation --------------------------------------------------------------------------------------------------------


async def test_a_mutation_starts_runs_through_its_context(async_api, note):
    """A `MutationCtx`: the run commits with the mutation's own writes."""
    api = async_api
    done = api.scripted("done")

    @api.app.mutation(name="order")
    async def order(ctx: MutationCtx) -> str:
        note(ctx, "ordered")
        return await api.retrier.run(ctx, done.action)

    run_id = await api.app.run_mutation(order)
    assert api.notes() == ["ordered"]
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")


async def test_a_failing_mutation_starts_nothing(async_api):
    """Nothing started by a rolled back transaction exists."""
    api = async_api
    done = api.scripted("done")
    started = []

    @api.app.mutation(name="order")
    async def order(ctx: MutationCtx) -> None:
        started.append(await api.retrier.run(ctx, done.action))
        raise LookupError

    with pytest.raises(LookupError):
        await api.app.run_mutation(order)
    with pytest.raises(RunNotFound):
        await api.status(api.app, started[0])


async def test_a_sync_mutation_starts_runs_through_its_context(api, note):
    """A `def` mutation uses the synchronous retrier, in a program of either colour."""
    done = api.scripted("done")
    retrier = SyncActionRetrier(api.app)

    @api.app.mutation(name="order")
    def order(ctx: MutationCtx) -> str:
        note(ctx, "ordered")
        return retrier.run(ctx, done.action)

    run_id = await api.run_mutation(order)
    assert api.notes() == ["ordered"]
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")


# -- sqlite3.Connection ------------------------------------------------------------------------------------------------


async def test_a_connection_is_accepted_before_its_first_statement_and_begun(api):
    """A handle that begins a transaction implicitly (sqlite3 by default) is accepted before its first statement."""
    done = api.scripted("done")
    async with api.connection() as connection:
        run_id = await api.run(connection, done.action)
        assert connection.in_transaction
        with pytest.raises(RunNotFound):
            await api.status(api.app, run_id)
        await api.call(connection.commit)
    assert await api.status(api.app, run_id) == InProgress()


async def test_closing_a_connection_without_a_commit_starts_nothing(api):
    """... and begun: without the user's commit there is no run."""
    done = api.scripted("done")
    async with api.connection() as connection:
        run_id = await api.run(connection, done.action)
    with pytest.raises(RunNotFound):
        await api.status(api.app, run_id)


async def test_pythons_with_block_commits_the_run(api, note):
    """`with connection:` is the usual way to commit with sqlite3."""
    done = api.scripted("done")
    async with api.connection() as connection:
        await api.call(connection.__enter__)
        await api.call(note, connection, "mine")
        run_id = await api.run(connection, done.action)
        await api.call(connection.__exit__, None, None, None)
    assert api.notes() == ["mine"]
    assert await api.status(api.app, run_id) == InProgress()


@pytest.mark.parametrize("isolation_level", ["DEFERRED", "IMMEDIATE", "EXCLUSIVE", ""])
async def test_a_connection_with_any_implicit_transactions_is_accepted(api, isolation_level):
    """A handle that begins a transaction implicitly is accepted, however it begins it."""
    done = api.scripted("done")
    async with api.connection(isolation_level=isolation_level) as connection:
        run_id = await api.run(connection, done.action)
        await api.call(connection.commit)
    assert await api.status(api.app, run_id) == InProgress()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit attribute before Python 3.12")
async def test_a_pep_249_connection_is_accepted(api):
    """`autocommit=False`: a transaction is always open."""
    done = api.scripted("done")
    async with api.connection(autocommit=False) as connection:
        run_id = await api.run(connection, done.action)
        await api.call(connection.commit)
    assert await api.status(api.app, run_id) == InProgress()


WRITES = ["run", "run_after", "run_at", "run_many", "cancel", "cancel_all", "cleanup", "retry", "retry_all"]


def write_through(api: Any, verb: str, handle: Any, action: Any, run_id: str) -> Any:
    """Call the writing *verb* with *handle* as its ctx."""
    arguments = {
        "run": (action,),
        "run_after": (10, action),
        "run_at": (api.clock.now(), action),
        "run_many": ([Call(action)],),
    }
    if verb.endswith("_all"):
        return getattr(api, verb)(handle, everything=True)
    return getattr(api, verb)(handle, *arguments.get(verb, (run_id,)))


@pytest.mark.parametrize("verb", WRITES)
async def test_a_connection_in_autocommit_mode_is_refused_for_writes(api, verb):
    """`InvalidContext`, nothing written, with the remedy: true autocommit with no transaction open (for writes)."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.connection(isolation_level=None) as connection:
        with pytest.raises(InvalidContext, match=r"(?is)autocommit.*BEGIN|BEGIN.*autocommit"):
            await write_through(api, verb, connection, done.action, run_id)
        assert not connection.in_transaction
    assert [(run.id, run.state) for run in await api.all_runs()] == [(run_id, "pending")]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit attribute before Python 3.12")
async def test_a_pep_249_connection_in_autocommit_mode_is_refused_for_writes(api):
    """True autocommit is refused under its newer name, too."""
    done = api.scripted("done")
    async with api.connection(autocommit=True) as connection:
        with pytest.raises(InvalidContext):
            await api.run(connection, done.action)
    assert await api.all_runs() == []


async def test_a_connection_in_autocommit_mode_may_read(api):
    """... (for writes; reads are fine)."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.connection(isolation_level=None) as connection:
        assert await api.status(connection, run_id) == InProgress()
        assert (await api.get(connection, run_id)).id == run_id
        assert [run.id for run in (await api.list(connection)).runs] == [run_id]
        assert not connection.in_transaction


async def test_a_connection_in_autocommit_mode_is_accepted_with_a_transaction_open(api):
    """Only autocommit *with no transaction open* is refused."""
    done = api.scripted("done")
    async with api.connection(isolation_level=None) as connection:
        await execute(api, connection, "BEGIN")
        run_id = await api.run(connection, done.action)
        await execute(api, connection, "COMMIT")
    assert await api.status(api.app, run_id) == InProgress()


async def test_a_connection_may_wait_outside_a_transaction(api):
    """`wait` is refused only inside a transaction."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.worker(), api.connection(isolation_level=None) as connection:
        assert await api.wait(connection, run_id) == Success(return_value="done")


async def test_a_transaction_that_read_too_early_is_told_what_to_do(api, note):
    """A deferred transaction that read before it writes cannot be served after another's commit: the error says so."""
    done = api.scripted("done")
    async with api.connection(isolation_level=None) as connection:
        await execute(api, connection, "BEGIN")
        await api.call(lambda: connection.execute("SELECT count(*) FROM notes").fetchone())
        async with api.connection() as other:
            await api.call(note, other, "meanwhile")
            await api.call(other.commit)
        with pytest.raises(RetrierError, match="BEGIN IMMEDIATE"):
            await api.run(connection, done.action)
        await execute(api, connection, "ROLLBACK")
    assert await api.all_runs() == []


async def test_the_settings_of_the_users_connection_are_left_alone(api):
    """The handle is the user's: its row factory serves the user's rows, not ours, and is there afterwards."""

    def hostile(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> str:
        return "a row of the user's own kind"

    done = api.scripted("done")
    async with api.connection() as connection:
        connection.row_factory = hostile
        connection.text_factory = bytes
        run_id = await api.run(connection, done.action, {}, context={"a": "ä"}, idempotency_key="k")
        assert await api.status(connection, run_id) == InProgress()
        assert (await api.get(connection, run_id)).context == {"a": "ä"}
        assert [run.id for run in (await api.list(connection)).runs] == [run_id]
        assert (connection.row_factory, connection.text_factory) == (hostile, bytes)
        await api.call(connection.commit)
    assert await api.status(api.app, run_id) == InProgress()


async def test_a_subclass_of_the_connection_is_a_connection(api):
    """Users give `sqlite3.connect` a factory of their own."""

    class Traced(sqlite3.Connection):
        pass

    done = api.scripted("done")
    async with api.connection(factory=Traced) as connection:
        run_id = await api.run(connection, done.action)
        await api.call(connection.commit)
    assert await api.status(api.app, run_id) == InProgress()


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*WRITES, "status", "get", "list", "wait"])
async def test_a_closed_connection_is_refused(api, verb):
    """`InvalidContext`: a closed handle."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.connection() as connection:
        await api.call(connection.close)
        call = api.list(connection) if verb == "list" else write_through(api, verb, connection, done.action, run_id)
        with pytest.raises(InvalidContext, match=r"(?i)closed"):
            await call


async def test_a_finished_mutation_context_is_refused(api):
    """`InvalidContext`: a `MutationCtx` whose transaction has ended is a closed handle."""
    done = api.scripted("done")
    async with api.transaction() as ctx:
        pass
    with pytest.raises(InvalidContext):
        await api.run(ctx, done.action)
    assert await api.all_runs() == []


async def test_a_handle_of_a_database_without_an_installation_is_refused(api, tmp_path):
    """`InvalidContext`: a handle of another database."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    async with api.connection(tmp_path / "another.db") as connection:
        for call in (api.run(connection, done.action), api.status(connection, run_id), api.list(connection)):
            with pytest.raises(InvalidContext, match=r"(?i)database"):
                await call
        assert await api.call(lambda: connection.execute("SELECT count(*) FROM sqlite_master").fetchone()) == (0,)


async def test_a_handle_of_another_installation_is_refused(api, tmp_path):
    """... or of another database (judged by an installation id read through the handle, never by URL)."""
    done = api.scripted("done")
    other = App(f"sqlite:///{tmp_path / 'another.db'}")
    await asyncio.to_thread(lambda: SyncActionRetrier(other).list(other))
    async with api.connection(tmp_path / "another.db") as connection:
        with pytest.raises(InvalidContext, match=r"(?i)database"):
            await api.run(connection, done.action)
        await api.call(connection.commit)
    await asyncio.to_thread(_close, other)
    assert await api.all_runs() == []


def _close(app: App) -> None:
    with app:
        pass


async def test_the_same_database_under_another_path_is_the_same_database(api, tmp_path):
    """... never by URL."""
    done = api.scripted("done")
    link = tmp_path / "link-to-the-folder"
    link.symlink_to(api.database.parent, target_is_directory=True)
    async with api.connection(link / api.database.name) as connection:
        run_id = await api.run(connection, done.action)
        await api.call(connection.commit)
    assert await api.status(api.app, run_id) == InProgress()


async def test_a_transaction_of_another_database_is_refused(api, tmp_path):
    """A `MutationCtx` of another App's database is a handle of another database."""
    done = api.scripted("done")
    other = App(f"sqlite:///{tmp_path / 'another.db'}", clock=api.clock)
    async with api.entered(lambda: other), api.entered(other.transaction) as ctx:
        with pytest.raises(InvalidContext, match=r"(?i)database|app"):
            await api.run(ctx, done.action)
    assert await api.all_runs() == []


async def test_a_transaction_of_another_app_on_the_same_database_is_accepted(api, note):
    """... judged by an installation id, never by which object it came from: two namespaces, one transaction."""
    done = api.scripted("done")
    async with api.sibling(namespace="other") as other:
        async with other.transaction() as ctx:
            await api.call(note, ctx, "mine")
            run_id = await api.run(ctx, done.action)
        assert api.notes() == ["mine"]
    assert await api.status(api.app, run_id) == InProgress()


async def test_an_app_that_is_not_open_yet_takes_a_transaction_of_another_app(api):
    """To open it would mean to wait for the very transaction."""
    other = api.sibling()
    done = other.scripted("done")
    async with api.transaction() as ctx:
        run_id = await asyncio.wait_for(other.run(ctx, done.action), 30)
    assert await api.status(api.app, run_id) == InProgress()
    await other.call(other.app._database.close)


async def test_another_app_is_refused(api, tmp_path):
    """The `app` itself: a retrier serves its own app's database, not another's."""
    done = api.scripted("done")
    other = App(f"sqlite:///{tmp_path / 'another.db'}", clock=api.clock)
    async with api.entered(lambda: other):
        with pytest.raises(InvalidContext):
            await api.run(other, done.action)
    assert await api.all_runs() == []


@pytest.mark.parametrize(
    "ctx", [None, 7, "app", object(), {}, Path(), InProgress()], ids=lambda ctx: type(ctx).__name__
)
async def test_what_holds_no_transaction_is_refused(api, ctx):
    """`ctx` is whatever holds the transaction; other things are `InvalidContext`, with the remedy."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)
    with pytest.raises(InvalidContext, match=f"{re.escape(type(ctx).__name__)}|{re.escape(repr(ctx))}"):
        await api.run(ctx, done.action)
    with pytest.raises(InvalidContext):
        await api.status(ctx, run_id)
    assert len(await api.all_runs()) == 1


async def test_a_cursor_is_refused(api):
    """A cursor is not on the list of handles."""
    done = api.scripted("done")
    async with api.connection() as connection:
        cursor = await api.call(connection.cursor)
        with pytest.raises(InvalidContext, match="Cursor"):
            await api.run(cursor, done.action)


async def test_a_forgotten_ctx_is_named(api):
    """A forgotten ctx ("ctx is the action 'charge'; pass app or your session first")."""

    @api.app.action(name="charge")
    def charge(order_id: int) -> None: ...

    for arguments in [(charge, {"order_id": 7}), (charge.bind(order_id=7), {}), (charge, {"order_id": 7}, None)]:
        with pytest.raises(InvalidContext, match=r"ctx is the action 'charge'; pass app or your session first"):
            await api.run(*arguments)
    with pytest.raises(InvalidContext, match="charge"):
        await api.run_after(charge, 10, {"order_id": 7})
    assert await api.all_runs() == []


async def test_a_forgotten_ctx_before_an_id_is_an_error_too(api):
    """`status(run_id)` lacks an argument, and what stands in its place is no ctx."""
    with pytest.raises(InvalidContext, match=r"ctx is a str: '0190a0c0-.*'; pass app or your session first"):
        await api.status("0190a0c0-0000-7000-8000-000000000000")


@pytest.mark.parametrize("given", ["the action", "a bind", "its name", "a list of calls"])
async def test_a_forgotten_ctx_is_named_though_other_arguments_are_missing(api, given):
    """What was meant as the second argument stands where ctx should."""

    @api.app.action(name="charge")
    def charge(order_id: int) -> None: ...

    with pytest.raises(InvalidContext, match=r"ctx is .*(charge|list).*; pass app or your session first"):
        match given:
            case "the action":
                await api.run(charge)
            case "a bind":
                await api.run(charge.bind(order_id=7))
            case "its name":
                await api.run_after("charge", 10)
            case "a list of calls":
                await api.run_many([Call(charge, {"order_id": 7})])
    assert await api.all_runs() == []


async def test_another_app_is_no_ctx(api, tmp_path):
    """A handle of another database: the App that is another one is named, and the one that is wanted."""
    done = api.scripted("done")
    other = App(f"sqlite:///{tmp_path / 'other.db'}")

    with pytest.raises(InvalidContext, match=r"ctx is another App, .*other\.db.*; pass the App of this retrier, "):
        await api.run(other, done.action)
    assert await api.all_runs() == []


async def test_a_handle_of_the_wrong_colour_is_refused(sync_api):
    """A handle of the wrong colour: `SyncActionRetrier` takes the sync ones."""
    aiosqlite = pytest.importorskip("aiosqlite")
    done = sync_api.scripted("done")
    async with aiosqlite.connect(sync_api.database) as connection:
        with pytest.raises(InvalidContext):
            await sync_api.run(connection, done.action)
    assert await sync_api.all_runs() == []


async def test_an_aiosqlite_connection_is_accepted(async_api):
    """Handles: ... `aiosqlite.Connection`."""
    aiosqlite = pytest.importorskip("aiosqlite")
    done = async_api.scripted("done")
    async with aiosqlite.connect(async_api.database) as connection:
        run_id = await async_api.run(connection, done.action)
        with pytest.raises(RunNotFound):
            await async_api.status(async_api.app, run_id)
        await connection.commit()
    assert await async_api.status(async_api.app, run_id) == InProgress()


async def test_an_async_action_context_is_refused_by_the_sync_retrier(async_api):
    """A handle of the wrong colour: blocking on the event loop that executes the action would stop it."""
    api = async_api
    done = api.scripted("done")
    retrier = SyncActionRetrier(api.app)

    @api.app.action(name="parent", max_failures=0)
    async def parent(ctx: ActionCtx) -> None:
        retrier.run(ctx, done.action)

    run_id = await api.run(api.app, parent)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert isinstance(result, Failed)
    assert result.error_type.endswith("InvalidContext")


# -- app inside an open transaction ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", WRITES)
async def test_app_inside_its_own_transaction_is_refused(api, verb):
    """`app` passed inside `app.transaction()` of the same task or thread (pass the `ctx`: SQLite would wait)."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)

    async def inside() -> None:
        async with api.transaction():
            await write_through(api, verb, api.app, done.action, run_id)

    with pytest.raises(InvalidContext, match="ctx"):
        await inside()
    assert [(run.id, run.state) for run in await api.all_runs()] == [(run_id, "pending")]


async def test_app_inside_a_mutation_is_refused(async_api):
    """`app` passed inside an open mutation."""
    api = async_api
    done = api.scripted("done")

    @api.app.mutation(name="wrong")
    async def wrong(ctx: MutationCtx) -> None:
        await api.retrier.run(api.app, done.action)

    with pytest.raises(InvalidContext, match="ctx"):
        await api.app.run_mutation(wrong)
    assert await api.all_runs() == []


async def test_app_inside_a_sync_mutation_is_refused(api):
    """`app` passed inside an open mutation of the same thread."""
    done = api.scripted("done")
    retrier = SyncActionRetrier(api.app)

    @api.app.mutation(name="wrong")
    def wrong(ctx: MutationCtx) -> None:
        retrier.run(api.app, done.action)

    with pytest.raises(InvalidContext, match="ctx"):
        await api.run_mutation(wrong)
    assert await api.all_runs() == []


async def test_app_inside_a_callback_is_refused(api):
    """A callback is a mutation: passing `app` fails it, and does not stop the worker."""
    done = api.scripted("done")
    retrier = SyncActionRetrier(api.app)
    tries: list[int] = []

    @api.app.mutation(name="wrong_at_first")
    def wrong_at_first(ctx: MutationCtx, run_id: str) -> None:
        tries.append(1)
        retrier.status(ctx, run_id)
        if len(tries) == 1:
            retrier.run(api.app, done.action)

    run_id = await api.run(api.app, done.action, on_complete=wrong_at_first)
    async with api.worker() as worker:

        async def settled() -> bool:
            await worker.until_idle()
            api.clock.advance(60_000)
            return (await api.get(api.app, run_id)).callback.state == "done"

        await api.eventually(settled, within_s=30)
    assert len(tries) == 2


async def test_a_transaction_that_was_refused_goes_on(api, note):
    """`InvalidContext`, nothing written: the open transaction is as it was."""
    done = api.scripted("done")
    async with api.transaction() as ctx:
        await api.call(note, ctx, "before")
        with pytest.raises(InvalidContext):
            await api.run(api.app, done.action)
        run_id = await api.run(ctx, done.action)
    assert api.notes() == ["before"]
    assert [run.id for run in await api.all_runs()] == [run_id]


async def test_another_task_may_pass_app_meanwhile(async_api):
    """... of the *same* task: another one's call waits for the transaction and then goes on."""
    api = async_api
    done = api.scripted("done")
    async with api.transaction() as ctx:
        other = asyncio.create_task(api.retrier.run(api.app, done.action))
        await asyncio.wait({other}, timeout=0.1)
        mine = await api.run(ctx, done.action)
    async with asyncio.timeout(20):
        others = await other
    assert {run.id for run in await api.all_runs()} == {mine, others}


async def test_another_thread_may_pass_app_meanwhile(sync_api):
    """... or thread."""
    api = sync_api
    done = api.scripted("done")
    async with api.transaction() as ctx:
        other = api.background(api.retrier.run, api.app, done.action)
        await asyncio.wait({other}, timeout=0.1)
        mine = await api.run(ctx, done.action)
    async with asyncio.timeout(20):
        others = await other
    assert {run.id for run in await api.all_runs()} == {mine, others}


async def test_a_transaction_of_another_app_is_no_obstacle(api, tmp_path):
    """Passing `app` is wrong inside a transaction of *that* app's database only."""
    done = api.scripted("done")
    other = App(f"sqlite:///{tmp_path / 'another.db'}", clock=api.clock)
    async with api.entered(lambda: other), api.entered(other.transaction):
        run_id = await api.run(api.app, done.action)
    assert await api.status(api.app, run_id) == InProgress()


async def test_app_is_fine_again_after_the_transaction(api):
    """Once the transaction has ended, however it ended."""
    done = api.scripted("done")
    async with open_transaction(api, "MutationCtx", commit=False):
        pass
    await api.run(api.app, done.action)
    async with api.transaction():
        pass
    await api.run(api.app, done.action)


# -- wait inside a transaction -----------------------------------------------------------------------------------------


async def test_wait_inside_a_transaction_is_refused(api, holder):
    """`wait` inside a transaction (its run cannot start before the commit)."""
    done = api.scripted("done")
    async with open_transaction(api, holder) as handle:
        run_id = await api.run(handle, done.action)
        with pytest.raises(InvalidContext, match=r"(?i)wait"):
            await api.wait(handle, run_id, timeout_ms=10_000)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")


async def test_wait_with_app_inside_a_transaction_is_refused(api):
    """... nor with `app`, inside `app.transaction()`."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action)

    async def inside() -> None:
        async with api.transaction():
            await api.wait(api.app, run_id, timeout_ms=10_000)

    with pytest.raises(InvalidContext):
        await inside()


async def test_a_run_in_progress_is_reported_inside_a_transaction_too(api, holder):
    """The errors of the verbs do not depend on the handle, and leave its transaction usable."""
    done = api.scripted("done")
    async with open_transaction(api, holder) as handle:
        run_id = await api.run(handle, done.action)
        with pytest.raises(RunInProgress):
            await api.cleanup(handle, run_id)
        with pytest.raises(RunNotFound):
            await api.get(handle, "unknown")
        second = await api.run(handle, done.action)
    assert {run.id for run in await api.all_runs()} == {run_id, second}
