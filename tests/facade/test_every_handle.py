"""The same promises through every handle, driver and database: one table, see `handle_kinds`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from action_retrier import (
    Call,
    Canceled,
    Completed,
    IdempotencyConflict,
    InProgress,
    InvalidContext,
    RunNotFound,
    SyncActionRetrier,
)
from action_retrier.testing import ManualClock

from ..stores import System, cancel_at_any_moment, open_system
from .conftest import Lane
from .handle_kinds import KINDS, Held, HeldSqlalchemy, Kind, in_loop, make_app, retrier_of


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def place(kind: Kind, tmp_path: Path) -> Iterator[System]:
    """A fresh database of the kind's system."""
    with contextlib.closing(open_system(kind.system, tmp_path)) as system:
        yield system


class Bench:
    """A user's program: an app, its retrier in the kind's colour, and an open handle."""

    def __init__(self, kind: Kind, system: System, stack: contextlib.AsyncExitStack, clock: ManualClock) -> None:
        self.kind, self.system, self.stack, self.clock = kind, system, stack, clock
        self.call = in_loop if kind.colour == "async" else Lane().call
        self.app = make_app(system, clock)
        self.retrier = retrier_of(self.app, kind.colour)

        @self.app.action(name="charge")
        def charge(order_id: int = 0) -> None: ...

        self.charge = charge
        stack.callback(self.app._database.close)

    async def hold(self, system: System | None = None, **options: Any) -> Held:
        """Open one more handle."""
        held = self.kind.held(self.kind, system or self.system, self.call, self.stack)
        await held.open(**options)
        return held

    async def does(self, verb: str, ctx: Any, *args: Any, **options: Any) -> Any:
        """Make a call of the retrier's."""
        return await self.call(lambda: getattr(self.retrier, verb)(ctx, *args, **options))

    async def status(self, run_id: str) -> Any:
        """Return what is committed; None if there is no such run."""
        with contextlib.suppress(RunNotFound):
            return await self.does("status", self.app, run_id)


@pytest.fixture
async def bench(kind: Kind, place: System, clock: ManualClock) -> AsyncIterator[Bench]:
    async with contextlib.AsyncExitStack() as stack:
        bench = Bench(kind, place, stack, clock)
        await bench.call(bench.app._database.open)
        yield bench


@pytest.fixture
async def held(bench: Bench) -> Held:
    return await bench.hold()


async def test_a_call_commits_with_the_users_own_writes(bench: Bench, held: Held) -> None:
    """I6: nothing exists before the user's commit, everything from then on."""
    await held.begin()
    await held.note("mine")
    run_id = await bench.does("run", held.handle, bench.charge, {"order_id": 7})
    assert await bench.does("status", held.handle, run_id) == InProgress()
    await held.note("afterwards")
    assert await bench.status(run_id) is None

    await held.commit()

    assert await bench.status(run_id) == InProgress()
    assert (await bench.does("get", bench.app, run_id)).args == {"order_id": 7}
    assert bench.system.notes() == ["mine", "afterwards"]


async def test_a_call_is_rolled_back_with_the_users_own_writes(bench: Bench, held: Held) -> None:
    await held.begin()
    run_id = await bench.does("run", held.handle, bench.charge)
    await held.note("mine")

    await held.rollback()

    assert await bench.status(run_id) is None
    assert bench.system.notes() == []


async def test_a_handle_is_accepted_before_its_first_statement(bench: Bench, held: Held) -> None:
    """... and begun: the call does not commit by itself, and the user's commit is its own."""
    if not held.begins_implicitly:
        await held.begin()
    run_id = await bench.does("run", held.handle, bench.charge)
    assert await bench.status(run_id) is None

    await held.commit()

    assert await bench.status(run_id) == InProgress()


async def test_one_handle_serves_one_transaction_after_the_other(bench: Bench, held: Held) -> None:
    run_ids = []
    for _ in range(2):
        await held.begin()
        run_ids.append(await bench.does("run", held.handle, bench.charge))
        await held.rollback()
        await held.begin()
        run_ids.append(await bench.does("run", held.handle, bench.charge))
        await held.commit()

    assert [await bench.status(run_id) for run_id in run_ids] == [None, InProgress()] * 2


async def test_a_rollback_to_the_users_savepoint_takes_what_was_started_since(bench: Bench, held: Held) -> None:
    """By the handle's own means, and the outer transaction goes on."""
    await held.begin()
    kept = await bench.does("run", held.handle, bench.charge)
    await held.savepoint()
    undone = await bench.does("run", held.handle, bench.charge)
    assert await bench.does("status", held.handle, undone) == InProgress()
    await held.rollback_to_savepoint()
    after = await bench.does("run", held.handle, bench.charge)
    await held.commit()

    assert [await bench.status(run_id) for run_id in (kept, undone, after)] == [InProgress(), None, InProgress()]


async def test_a_savepoint_may_come_first(bench: Bench, held: Held) -> None:
    """What a nested block starts is the outer one's, also where the outer one has done nothing before."""
    await held.begin()
    if bench.kind.name.startswith(("sqlite3", "aiosqlite")):
        await held.execute("BEGIN")  # else the savepoint is the transaction, as its user knows
    await held.savepoint()
    run_id = await bench.does("run", held.handle, bench.charge)
    if hasattr(held, "nested"):
        await bench.call(held.nested.commit)
    elif bench.kind.name.startswith("Django"):
        await held.commit()
    else:
        await held.execute("RELEASE SAVEPOINT users")
    await held.rollback()

    assert await bench.status(run_id) is None


async def test_a_cancel_holds_from_the_commit(bench: Bench, held: Held) -> None:
    run_id = await bench.does("run", bench.app, bench.charge)
    await held.begin()
    assert await bench.does("cancel", held.handle, run_id) is True
    assert await bench.does("status", held.handle, run_id) == Completed(Canceled())
    assert await bench.does("cancel", held.handle, run_id) is False
    assert await bench.status(run_id) == InProgress()

    await held.commit()

    assert await bench.status(run_id) == Completed(Canceled())


async def test_a_call_that_raises_leaves_the_transaction_as_it_was(bench: Bench, held: Held) -> None:
    """Nothing of it is left behind, nothing else is lost, and the transaction goes on."""
    await bench.does("run", bench.app, bench.charge, {"order_id": 1}, idempotency_key="k")
    await held.begin()
    await held.note("mine")
    first = await bench.does("run", held.handle, bench.charge)
    calls = [Call(bench.charge), Call(bench.charge, {"order_id": 2}, idempotency_key="k")]
    with pytest.raises(IdempotencyConflict):
        await bench.does("run_many", held.handle, calls)
    with pytest.raises(RunNotFound):
        await bench.does("cancel", held.handle, "01890000-0000-7000-8000-000000000000")
    others = await bench.does("run_many", held.handle, [Call(bench.charge), Call(bench.charge)])
    await held.commit()

    runs = (await bench.does("list", bench.app)).runs
    assert {run.id for run in runs if run.options.get("idempotency_key") != "k"} >= {first, *others}
    assert len(runs) == 4
    assert bench.system.notes() == ["mine"]


async def test_calls_at_the_same_time_do_not_undo_each_other(bench: Bench, held: Held) -> None:
    """I1: tasks share the handle, and one call's failure takes back nothing of the others'."""
    if bench.kind.colour == "sync" or isinstance(held, HeldSqlalchemy):
        pytest.skip("it is one task's")
    await bench.does("run", bench.app, bench.charge, {"order_id": 1}, idempotency_key="taken")
    await held.begin()
    calls = []
    for n in range(5):
        calls.append(bench.does("run", held.handle, bench.charge, idempotency_key=f"k{n}"))
        calls.append(bench.does("run", held.handle, bench.charge, {"order_id": 2}, idempotency_key="taken"))
        calls.append(bench.does("run", held.handle, bench.charge))
    ended = await asyncio.gather(*calls, return_exceptions=True)
    await held.commit()

    assert [type(one) for one in ended] == [str, IdempotencyConflict, str] * 5
    assert [await bench.status(run_id) for run_id in ended if isinstance(run_id, str)] == [InProgress()] * 10


async def test_a_read_needs_no_transaction(bench: Bench, held: Held) -> None:
    run_id = await bench.does("run", bench.app, bench.charge)

    assert await bench.does("status", held.handle, run_id) == InProgress()
    assert (await bench.does("get", held.handle, run_id)).id == run_id
    assert [run.id for run in (await bench.does("list", held.handle)).runs] == [run_id]


async def test_a_wait_inside_a_transaction_is_refused(bench: Bench, held: Held) -> None:
    """Its run cannot start before the commit."""
    await held.begin()
    run_id = await bench.does("run", held.handle, bench.charge)
    with pytest.raises(InvalidContext, match="wait was called inside a transaction"):
        await bench.does("wait", held.handle, run_id, timeout_ms=0)
    await held.rollback()


async def test_a_wait_leaves_the_handle_as_it_was(bench: Bench, held: Held) -> None:
    """It may take long, and a transaction that is open meanwhile would hold up the whole database."""
    run_id = await bench.does("run", bench.app, bench.charge)
    with pytest.raises(TimeoutError):
        await bench.does("wait", held.handle, run_id, timeout_ms=0)
    other = await bench.hold()
    await other.begin()
    await bench.does("cancel", other.handle, run_id)
    await other.commit()
    assert await bench.does("wait", held.handle, run_id, timeout_ms=0) == Canceled()


async def test_a_handle_of_another_database_is_refused(bench: Bench, tmp_path: Path) -> None:
    """Judged by what is read through it; nothing is written."""
    (tmp_path / "other").mkdir()
    with contextlib.closing(open_system(bench.kind.system, tmp_path / "other")) as other:
        app = make_app(other, bench.clock)
        app.action(name="charge")(lambda_free)
        await bench.call(app._database.open)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(app._database.close)
            if bench.kind.system != "sqlite":
                # One server: what tells them apart is the schema that each of the apps looks into.
                bench.app._database._target = other_target(bench.app._database._target)
            held = bench.kind.held(bench.kind, other, bench.call, stack)
            await held.open()
            await held.begin()
            with pytest.raises(InvalidContext, match="another database|other than the app's|no tables"):
                await bench.does("run", held.handle, bench.charge)
            await held.rollback()
            assert other.table("runs") == []


def lambda_free(order_id: int = 0) -> None: ...


def other_target(target: Any) -> Any:
    """Return a target whose schema is not there."""
    return type(target)(target.conninfo, target.location, "nowhere", notify=target.notify, direct=target.direct)


async def test_a_closed_handle_is_refused(bench: Bench, held: Held) -> None:
    if bench.kind.name in {"Session", "AsyncSession", "scoped_session", "Django connection"}:
        pytest.skip("it opens itself again")
    await held.close()

    for verb, args in (("run", [bench.charge]), ("list", [])):
        with pytest.raises(InvalidContext, match="closed|given back|not been started|cannot be used"):
            await bench.does(verb, held.handle, *args)


def autocommit_options(kind: Kind) -> dict[str, Any]:
    """Return what makes a handle one that commits each statement."""
    if kind.driver:
        return {"isolation_level": "AUTOCOMMIT", "recipe": False}
    if "sqlite" in kind.name:
        return {"isolation_level": None}
    return {"autocommit": True} if "psycopg" in kind.name else {}


async def test_autocommit_cannot_hold_a_write(bench: Bench) -> None:
    """Nothing is written, and the error says what to do; a read is fine."""
    run_id = await bench.does("run", bench.app, bench.charge)
    held = await bench.hold(**autocommit_options(bench.kind))

    with pytest.raises(InvalidContext, match="transaction open|outside of atomic"):
        await bench.does("run", held.handle, bench.charge)

    assert [run.id for run in (await bench.does("list", held.handle)).runs] == [run_id]
    assert len(bench.system.table("runs")) == 1


async def test_a_handle_of_the_wrong_colour_is_refused(bench: Bench, held: Held) -> None:
    """... with the name of the retrier that takes it."""
    if bench.kind.name.startswith("sqlite3"):
        pytest.skip("both retriers take it")
    await held.begin()
    other = retrier_of(bench.app, "sync" if bench.kind.colour == "async" else "async")

    async def run() -> Any:
        value = other.run(held.handle, bench.charge)
        return value if isinstance(other, SyncActionRetrier) else await value

    expected = "use ActionRetrier" if bench.kind.colour == "async" else "use SyncActionRetrier"
    with pytest.raises(InvalidContext, match=expected):
        if bench.kind.colour == "async":
            await run()
        else:
            await bench.call(lambda: __import__("asyncio").run(run()))
    await held.rollback()
    assert bench.system.table("runs") == []


async def test_a_canceled_call_leaves_the_transaction_usable(bench: Bench, held: Held) -> None:
    """Wherever the cancellation meets it: a savepoint that was cut short would have failed the whole transaction."""
    if bench.kind.colour != "async":
        pytest.skip("blocking calls are not canceled")
    await held.begin()
    await bench.does("run", held.handle, bench.charge)
    told, canceled = await cancel_at_any_moment(
        lambda: bench.retrier.run(held.handle, bench.charge), lambda number: held.note(f"{number}")
    )

    await held.commit()

    assert len(bench.system.notes()) == 60
    assert 1 + told <= len(bench.system.table("runs")) <= 1 + told + canceled


async def test_a_canceled_call_that_waits_for_somebody_is_taken_back(bench: Bench, held: Held) -> None:
    """It does not wait for as long as the other transaction lasts, and the user's own goes on."""
    if bench.kind.colour != "async" or bench.kind.system == "sqlite":
        pytest.skip("nobody waits for a row")
    other = await bench.hold()
    await other.begin()
    await bench.does("run", other.handle, bench.charge, idempotency_key="theirs")
    await held.begin()
    await held.note("before")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.retrier.run(held.handle, bench.charge, idempotency_key="theirs"), 0.1)
    await held.note("after")
    await held.commit()
    await other.rollback()

    assert bench.system.notes() == ["before", "after"]
    assert bench.system.table("runs") == []
