"""`on_complete`: the three results, its own context, and a callback that raises and is tried again, alone."""

import asyncio
from dataclasses import dataclass

from action_retrier import (
    ActionRetrier,
    App,
    Canceled,
    Failed,
    MutationCtx,
    NonRetryableError,
    RunResult,
    Success,
)
from action_retrier.testing import ManualClock

clock = ManualClock()
app = App("sqlite:///callbacks.db", clock=clock)
retrier = ActionRetrier(app)
executions: list[str] = []
calls: list[str] = []

TRIES_OF_CORK = 3


@dataclass
class Order:
    """Arguments, contexts and return values may be whatever pydantic takes to JSON and back."""

    order_id: int


@app.action
async def ship(to: str) -> str:
    executions.append(to)
    if to == "Atlantis":
        raise NonRetryableError("no such place")
    return f"shipped to {to}"


@app.mutation
def shipped(ctx: MutationCtx, run_id: str, result: RunResult, context: Order) -> None:
    """Name those of ctx, run_id, result and context that you need."""
    match result:
        case Success(value):
            note = value
        case Failed(error, error_type):
            note = f"{error_type}: {error}"
        case Canceled():
            note = "canceled"
    ctx.db.execute("INSERT INTO log (order_id, run_id, note) VALUES (?, ?, ?)", (context.order_id, run_id, note))
    calls.append(note)
    if note == "shipped to Cork" and calls.count(note) < TRIES_OF_CORK:
        raise RuntimeError("the callback's own trouble")  # its insert is rolled back with it


async def main() -> None:
    async with app.transaction() as ctx:
        ctx.db.execute("CREATE TABLE log (order_id INTEGER, run_id TEXT, note TEXT)")
        for order_id, place in enumerate(["Porto", "Atlantis", "Oslo", "Cork"], 1):
            args = {"to": place}
            run_id = await retrier.run(ctx, ship, args, on_complete=shipped, context=Order(order_id))
            if place == "Oslo":
                await retrier.cancel(ctx, run_id)

    async with app.worker() as worker:
        await worker.until_idle()
        # The outcome stands, and the callback that raised is pending: visible, and never given up.
        (late,) = (await retrier.list(app, callback="pending")).runs
        assert late.state == "succeeded"
        assert late.callback is not None
        assert late.callback.last_error == "RuntimeError: the callback's own trouble"
        clock.advance(60_000)
        await worker.until_idle()
        clock.advance(60_000)
        await worker.until_idle()

    async with app.transaction() as ctx:
        log = ctx.db.execute("SELECT order_id, note FROM log ORDER BY order_id").fetchall()
    name = "action_retrier.errors.NonRetryableError"
    assert log == [(1, "shipped to Porto"), (2, f"{name}: no such place"), (3, "canceled"), (4, "shipped to Cork")]
    assert calls.count("shipped to Cork") == TRIES_OF_CORK  # the body ran each time, its writes committed once
    assert executions.count("Cork") == 1  # and the action never again
    print(*log, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
