"""A worker dies in the test's own process, at any step of what it does, and the next one finishes what it left."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from action_retrier import (
    ActionCtx,
    ActionRetrier,
    App,
    Canceled,
    Completed,
    DatabaseUnavailable,
    MutationCtx,
    SyncActionCtx,
    SyncActionRetrier,
)
from action_retrier.testing import (
    ManualClock,
    NeverReached,
    SimulatedCrash,
    crash_after,
    crash_at,
    crash_before,
    fail_after,
    fail_at,
    failpoints,
    run_until_idle,
    run_until_idle_sync,
)

from ..stores import System


class Shop:
    """An App with an order to ship."""

    def __init__(self, system: System, clock: ManualClock) -> None:
        self.system = system
        self.app = App(system.url, clock=clock)
        self.retrier = SyncActionRetrier(self.app)
        self.attempts: list[int] = []
        self.calls = 0

        @self.app.action(name="ship", jitter=0)
        def ship(ctx: SyncActionCtx) -> None:
            self.attempts.append(ctx.attempt)

        @self.app.action(name="ship_async", jitter=0)
        async def ship_async(ctx: ActionCtx) -> None:
            self.attempts.append(ctx.attempt)

        @self.app.mutation(name="shipped")
        def shipped(ctx: MutationCtx, run_id: str) -> None:
            self.calls += 1
            system.write_note(ctx.db, run_id)

    def start(self, action: str = "ship", **options: Any) -> str:
        return self.retrier.run(self.app, action, on_complete="shipped", **options)

    def state(self, run_id: str) -> str:
        return self.retrier.get(self.app, run_id).state

    def finish(self) -> None:
        """Let the next worker finish what was left."""
        run_until_idle_sync(self.app, jump=True)


@pytest.fixture
def shop(system: System, clock: ManualClock) -> Iterator[Shop]:
    shop = Shop(system, clock)
    with shop.app:
        yield shop


@pytest.mark.parametrize("action", ["ship", "ship_async"])
@pytest.mark.parametrize(
    ("point", "state", "calls", "attempts"),
    [
        ("lease.before", "pending", 0, [1]),
        ("register.before_commit", "pending", 0, [1]),
        ("register.after_commit", "pending", 0, [1]),
        ("claim.before", "pending", 0, [1]),
        ("claim.before_commit", "pending", 0, [1]),
        ("claim.after_commit", "running", 0, [2]),
        ("action.before", "running", 0, [2]),
        ("action.after", "running", 0, [1, 2]),
        ("report.before", "running", 0, [1, 2]),
        ("callback.before", "running", 0, [1, 2]),
        ("callback.after", "running", 1, [1, 2]),
        ("report.before_commit", "running", 1, [1, 2]),
        ("report.after_commit", "succeeded", 1, [1]),
        ("sign_off.before", "succeeded", 1, [1]),
        ("sign_off.after_commit", "succeeded", 1, [1]),
    ],
)
def test_what_a_worker_leaves_that_dies_at(shop, system, action, point, state, calls, attempts):
    """Its transaction rolls back, nothing of it has any effect any more, and the next worker recovers at once."""
    run_id = shop.start(action)

    with crash_at(shop.app, point) as crash:
        run_until_idle_sync(shop.app)
    left = shop.state(run_id), shop.calls, system.notes()
    shop.finish()

    assert crash.happened
    assert left == (state, calls, [run_id] if state == "succeeded" else [])
    assert shop.state(run_id) == "succeeded"
    assert shop.attempts == attempts
    assert system.notes() == [run_id], "exactly once"
    assert [row["id"] for row in system.table("workers")] == []


def test_before_and_after_are_the_first_and_the_last_moment_of_a_step(shop):
    shop.start()

    with crash_before(shop.app, "report") as first:
        run_until_idle_sync(shop.app)
    with crash_after(shop.app, "report") as last:
        run_until_idle_sync(shop.app, jump=True)

    assert (first.point, last.point) == ("report.before", "report.after_commit")


def test_a_worker_may_die_the_nth_time(shop):
    run_ids = [shop.start(), shop.start()]

    with crash_after(shop.app, "report", nth=2):
        run_until_idle_sync(shop.app)

    assert [shop.state(run_id) for run_id in run_ids] == ["succeeded", "succeeded"]
    assert shop.calls == 2


async def test_a_worker_of_an_async_test_dies_alike(system, clock):
    shop = Shop(system, clock)
    async with shop.app:
        run_id = await ActionRetrier(shop.app).run(shop.app, "ship_async")
        with crash_before(shop.app, "report"):
            async with shop.app.worker() as worker:
                await worker.until_idle()
        (run,) = await run_until_idle(shop.app, jump=True)

    assert (run.id, [attempt.error_type for attempt in run.attempts]) == (run_id, ["WorkerLost", None])


@pytest.mark.parametrize("is_nested", [False, True], ids=["a block", "a block inside another"])
def test_a_dead_workers_thread_writes_nothing_through_the_app(shop, is_nested):
    """A thread goes on after its worker's death: what it wants from the app is refused, and it is told to stop."""
    began, go_on, refused = threading.Event(), threading.Event(), threading.Event()
    seen: list[object] = []

    @shop.app.action(name="slow")
    def slow(ctx: SyncActionCtx) -> None:
        began.set()
        go_on.wait(30)
        seen.append(ctx.canceled)
        for call in (
            lambda: shop.retrier.run(ctx, "ship"),
            lambda: shop.retrier.status(shop.app, ctx.run_id),
            lambda: shop.app.run_mutation_sync("shipped", {"run_id": ctx.run_id}),
        ):
            with pytest.raises(SimulatedCrash):
                call()
        refused.set()

    run_id = shop.retrier.run(shop.app, "slow", max_failures=0)
    with contextlib.ExitStack() as outer:
        if is_nested:
            outer.enter_context(fail_at(shop.app, "cancel.before", error=ZeroDivisionError()))
        with crash_after(shop.app, "report"), shop.app.worker() as worker:
            assert began.wait(30)
            shop.start()
            worker.until_idle()
        if is_nested:
            with pytest.raises(ZeroDivisionError):
                shop.retrier.cancel(shop.app, run_id)
    go_on.set()

    assert refused.wait(30)
    assert seen == [True]
    assert len(shop.retrier.list(shop.app).runs) == 2


def test_a_dead_worker_does_not_finish_what_its_loop_was_at(shop, system):
    """An async action is canceled where it awaits."""
    ended: list[str] = []

    @shop.app.action(name="waits")
    async def waits(ctx: ActionCtx) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(str(ctx.stop_reason))

    run_id = shop.retrier.run(shop.app, "waits")
    shop.start()
    with crash_after(shop.app, "report"):
        run_until_idle_sync(shop.app)

    assert (ended, shop.state(run_id)) == (["lease_lost"], "running")


@pytest.mark.parametrize(("inject", "is_there"), [(crash_before, False), (crash_after, True)])
def test_a_caller_may_die_as_well(shop, inject, is_there):
    """The block ends where the caller dies."""
    went_on = False

    with inject(shop.app, "start"):
        shop.start()
        went_on = True

    assert not went_on
    assert len(shop.retrier.list(shop.app).runs) == is_there


def test_an_answer_that_is_lost_is_an_error_of_the_database(shop):
    run_id = shop.start()

    with fail_after(shop.app, "cancel"), pytest.raises(DatabaseUnavailable, match=r"at cancel\.after_commit") as caught:
        shop.retrier.cancel(shop.app, run_id)

    assert shop.retrier.status(shop.app, run_id) == Completed(Canceled())
    assert caught.value.remedy == "look whether it did before you do it again"


@pytest.mark.parametrize("point", ["cancel.before", "cancel.before_commit"])
def test_what_has_not_committed_may_be_done_again(shop, point):
    run_id = shop.start()

    with fail_at(shop.app, point), pytest.raises(DatabaseUnavailable, match="nothing was committed: do it again"):
        shop.retrier.cancel(shop.app, run_id)

    assert shop.state(run_id) == "pending"


def test_the_log_says_what_has_happened_and_nothing_of_the_dead(shop, caplog):
    """A callback that has returned raised nothing, wherever its worker dies."""
    shop.start()

    with crash_after(shop.app, "report"):
        run_until_idle_sync(shop.app)

    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert re.fullmatch(r"worker \S+ dies, by a test, at report\.after_commit", told[0])


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ("report.before_commit", "its transaction failed with action_retrier.errors.DatabaseUnavailable"),
        ("report.after_commit", "its transaction failed with action_retrier.errors.DatabaseUnavailable"),
        ("callback.before", "raised action_retrier.errors.DatabaseUnavailable; it is tried again"),
    ],
)
def test_a_callback_is_not_said_to_have_raised_what_its_transaction_did(shop, caplog, point, told):
    run_id = shop.start()

    with fail_at(shop.app, point):
        run_until_idle_sync(shop.app, jump=True)

    (line,) = [message for message in caplog.messages if message.startswith("callback shipped of run ")]
    assert told in line
    assert shop.state(run_id) == "succeeded"


@pytest.mark.parametrize("point", ["recover.before", "recover.after_commit"])
def test_dead_workers_are_recovered_although_that_fails_once(shop, point):
    run_id = shop.start()
    with crash_after(shop.app, "claim"):
        run_until_idle_sync(shop.app)

    with fail_at(shop.app, point):
        run_until_idle_sync(shop.app, jump=True)

    assert (shop.state(run_id), shop.attempts) == ("succeeded", [2])


@pytest.mark.parametrize("point", ["claim.before", "report.before_commit", "report.after_commit", "callback.after"])
def test_a_worker_lives_on_after_an_error_and_does_it_again(shop, system, point):
    run_id = shop.start()

    with fail_at(shop.app, point):
        run_until_idle_sync(shop.app, jump=True)

    assert (shop.state(run_id), shop.attempts, system.notes()) == ("succeeded", [1], [run_id])


def test_the_error_may_be_the_tests_own(shop):
    with fail_at(shop.app, "start.before", error=OSError("no route")), pytest.raises(OSError, match="no route"):
        shop.start()


def test_a_block_in_which_nothing_happened_says_so(shop):
    with pytest.raises(NeverReached, match=r"report\.before was not reached"), crash_before(shop.app, "report"):
        run_until_idle_sync(shop.app)


def test_a_block_says_how_near_it_came(shop):
    shop.start()
    with (
        pytest.raises(
            NeverReached, match=r"callback\.before was reached 1 of 2 times inside the block: start the worker"
        ),
        crash_before(shop.app, "callback", nth=2),
    ):
        run_until_idle_sync(shop.app)
    for step, remedy in (("start", "make the call in it"), ("migrate", "open the App in it")):
        told = rf"{step}\.before was not reached inside the block: {remedy}"
        with pytest.raises(NeverReached, match=told), crash_before(shop.app, step), shop.app:
            pass


def test_blocks_may_stand_inside_each_other(shop, system):
    run_id = shop.start()

    with fail_after(shop.app, "claim") as first, crash_after(shop.app, "action") as second:
        run_until_idle_sync(shop.app)  # its worker signs off what was claimed, and it did not know of
        run_until_idle_sync(shop.app)

    assert (first.happened, second.happened, shop.state(run_id)) == (True, True, "running")


def test_an_error_of_the_test_is_not_hidden(shop):
    with pytest.raises(ZeroDivisionError), crash_before(shop.app, "report"):
        raise ZeroDivisionError


def test_a_worker_that_was_started_before_the_block_may_fail_and_cannot_die(shop):
    with shop.app.worker() as worker:
        with fail_at(shop.app, "claim.before") as failed:
            run_id = shop.start()
            worker.until_idle()
        assert (failed.happened, shop.state(run_id)) == (True, "succeeded")
        with (
            pytest.raises(NeverReached, match="but for a worker that was started outside of it, and cannot die: start"),
            crash_before(shop.app, "claim"),
        ):
            run_id = shop.start()
            worker.until_idle()
        assert shop.state(run_id) == "succeeded"


@pytest.mark.parametrize("action", ["starts", "starts_async"])
def test_an_action_of_such_a_worker_is_no_caller_that_can_die(shop, action):
    """Nor is a callback, nor what they leave to others."""
    retrier = ActionRetrier(shop.app)

    @shop.app.action(name="starts")
    def starts(ctx: SyncActionCtx) -> None:
        shop.retrier.run(ctx, "ship")

    @shop.app.action(name="starts_async")
    async def starts_async(ctx: ActionCtx) -> None:
        await asyncio.gather(retrier.run(ctx, "ship"))

    @shop.app.mutation(name="starts_another")
    def starts_another(ctx: MutationCtx, run_id: str) -> None:
        shop.retrier.run(ctx, "ship")

    with shop.app.worker() as worker, pytest.raises(NeverReached), crash_before(shop.app, "start", nth=2):
        run_id = shop.retrier.run(shop.app, action, on_complete="starts_another")
        worker.until_idle()

    assert [attempt.error_type for attempt in shop.retrier.get(shop.app, run_id).attempts] == [None]
    assert [run.state for run in shop.retrier.list(shop.app).runs] == ["succeeded"] * 3


@pytest.mark.parametrize("action", ["starts", "starts_async"])
def test_a_worker_dies_of_what_its_action_calls(shop, action):
    @shop.app.action(name="starts", jitter=0)
    def starts(ctx: SyncActionCtx) -> None:
        shop.retrier.run(ctx, "ship")

    @shop.app.action(name="starts_async", jitter=0)
    async def starts_async(ctx: ActionCtx) -> None:
        await ActionRetrier(shop.app).run(ctx, "ship")

    with crash_before(shop.app, "start", nth=2):
        run_id = shop.retrier.run(shop.app, action)
        run_until_idle_sync(shop.app)
    shop.finish()

    attempts = shop.retrier.get(shop.app, run_id).attempts
    assert [attempt.error_type for attempt in attempts] == ["WorkerLost", None]


@pytest.mark.parametrize("inject", [crash_after, fail_after])
def test_another_app_opens_its_database_undisturbed(system, clock, inject):
    """Opening is done by functions that all Apps share."""
    app, other = App(system.url, clock=clock), App(system.url, clock=clock, namespace="other")

    with pytest.raises(NeverReached), inject(app, "migrate"), other:
        pass
    with contextlib.suppress(DatabaseUnavailable), inject(app, "migrate") as injected, app:
        pass

    assert injected.happened


def test_names_are_checked(shop):
    with pytest.raises(ValueError, match=r"no step 'reprot': did you mean report\?$"):
        crash_before(shop.app, "reprot")
    with pytest.raises(ValueError, match="no step 'zzz'; there are start, cancel, "):
        crash_before(shop.app, "zzz")
    with pytest.raises(ValueError, match="no step 'report.before': it is a failpoint, which crash_at and fail_at take"):
        crash_before(shop.app, "report.before")
    with pytest.raises(
        ValueError,
        match=r"no failpoint 'report': report has report\.before, report\.before_commit, report\.after_commit$",
    ):
        crash_at(shop.app, "report")
    with pytest.raises(
        ValueError,
        match=r"no failpoint 'reprot\.after': did you mean report\.after_commit\? report has report\.before, ",
    ):
        crash_at(shop.app, "reprot.after")
    with pytest.raises(ValueError, match=r"no failpoint 'lease\.before_commit': did you mean lease\.before\?"):
        fail_at(shop.app, "lease.before_commit")
    with pytest.raises(ValueError, match="no failpoint 'zzz'; there are start, .*each with its moments"):
        fail_at(shop.app, "zzz")
    with pytest.raises(ValueError, match="nth"):
        fail_at(shop.app, "claim.before", nth=0)


def test_a_retrier_is_no_app(shop):
    with pytest.raises(TypeError, match="pass the App, not .*SyncActionRetrier.*: a retrier follows the App"):
        crash_after(shop.retrier, "report")
    with pytest.raises(TypeError, match="pass the App, not 7$"):
        fail_after(7, "report")


def test_each_failpoint_says_what_happens_there_and_can_be_injected(shop):
    for point, what in failpoints().items():
        assert what
        crash_at(shop.app, point)
        fail_at(shop.app, point)


def test_nothing_is_left_of_a_block_in_which_nobody_died(shop):
    before = {**vars(shop.app._database)}, {**vars(shop.app._engine.mutations)}, {**vars(shop.app)}

    shop.start()
    with fail_at(shop.app, "claim.before"):
        run_until_idle_sync(shop.app)

    assert ({**vars(shop.app._database)}, {**vars(shop.app._engine.mutations)}, {**vars(shop.app)}) == before


@pytest.mark.sqlite(reason="an engine's App hands everything but transactions to the database underneath")
@pytest.mark.parametrize(("point", "calls"), [("callback.after", 1), ("report.before_commit", 1), ("claim.before", 0)])
def test_a_worker_on_an_engine_dies_alike(system, clock, point, calls):
    """There the transaction is SQLAlchemy's."""
    app = App(create_engine(f"sqlite:///{system.path}"), clock=clock)
    called: list[str] = []

    @app.action(name="ship", jitter=0)
    def ship() -> None: ...

    @app.mutation(name="shipped")
    def shipped(ctx: MutationCtx, run_id: str) -> None:
        called.append(run_id)
        ctx.session.execute(text("INSERT INTO notes (text) VALUES (:text)"), {"text": run_id})

    with app:
        run_id = SyncActionRetrier(app).run(app, ship, on_complete=shipped)
        with crash_at(app, point):
            run_until_idle_sync(app)
        left = called.copy(), system.notes()
        run_until_idle_sync(app, jump=True)

    assert left == ([run_id] * calls, [])
    assert system.notes() == [run_id]
