"""User code that type checkers must understand: checked by mypy strict, with every ignore needed."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_type

from action_retrier import (
    ActionCtx,
    ActionRetrier,
    App,
    Bound,
    Call,
    Canceled,
    Completed,
    Failed,
    InProgress,
    MutationCtx,
    Page,
    Run,
    RunResult,
    Success,
    SyncActionCtx,
    SyncActionRetrier,
)

app = App("sqlite:///typed.db")
retrier = ActionRetrier(app, initial_backoff_ms=100, max_failures=2)
sync_retrier = SyncActionRetrier(app, queue="slow")


@dataclass
class Order:
    id: int


@app.action
async def charge(ctx: ActionCtx, order: Order, amount: int = 1) -> str:
    ctx.progress(0.5)
    await ctx.run_mutation(note, {"text": "charging"})
    return f"{order.id}: {amount}"


@app.action(name="refund", max_failures=1, retry_on=ConnectionError)
def refund(ctx: SyncActionCtx, order_id: int) -> None:
    ctx.raise_if_canceled()


@app.action
def ping(host: str) -> bool:
    return bool(host)


@app.mutation
def note(ctx: MutationCtx, text: str) -> int:
    ctx.db.execute("INSERT INTO notes VALUES (?)", (text,))
    return 1


@app.mutation(isolation="read committed", timeout_ms=1000)
async def done(ctx: MutationCtx, run_id: str, result: RunResult, context: str | None) -> None:
    match result:
        case Success(value):
            print(run_id, value, context)
        case Failed(error, error_type):
            print(error, error_type)
        case Canceled():
            print("canceled")


assert_type(charge.bind(Order(1)), Bound)
assert_type(charge.bind(order=Order(1), amount=2), Bound)
refund.bind(order_id=7)
assert_type(ping("localhost"), bool)

charge.bind(amount=2)  # type: ignore[call-arg]
charge.bind(order=7)  # type: ignore[arg-type]
refund.bind(order="seven")  # type: ignore[call-arg]
ping(7)  # type: ignore[arg-type]
app.action(max_failure=3)  # type: ignore[call-overload]
ActionRetrier(app, bse=3)  # type: ignore[call-arg]


async def use() -> None:
    async with app, app.worker(concurrency=10) as worker:
        run_id = await retrier.run(app, charge, {"order": {"id": 1}}, on_complete=done, context="hello", priority=3)
        assert_type(run_id, str)
        await retrier.run(app, ping.bind("localhost"), idempotency_key="once")
        await retrier.run_at(app, datetime.now(UTC), "another:service", {"x": 1})
        await retrier.run_after(app, 500, refund, {"order_id": 7})
        assert_type(await retrier.run_many(app, [Call(ping.bind("a")), Call(refund, {"order_id": 1})]), list[str])
        await worker.until_idle()
        match await retrier.status(app, run_id):
            case Completed(result):
                print(result.type)
            case InProgress():
                print("in progress")
        assert_type(await retrier.get(app, run_id), Run)
        assert_type(await retrier.list(app, state="failed"), Page)
        assert_type(await retrier.cancel(app, run_id), bool)
        async with app.transaction() as ctx:
            await retrier.run(ctx, ping.bind("b"))
        await retrier.run(app, charge, tries=3)  # type: ignore[call-arg]


def use_sync() -> None:
    with app, app.worker() as worker, app.transaction() as ctx:
        assert_type(sync_retrier.run(ctx, ping, {"host": "a"}), str)
        worker.until_idle()
