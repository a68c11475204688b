"""An action that fails once, the retry that follows, and the callback at the end. Start here."""

import asyncio

from action_retrier import ActionCtx, ActionRetrier, App, MutationCtx, RunResult, Success

app = App("sqlite:///first_program.db")
retrier = ActionRetrier(app)


@app.action
async def charge(ctx: ActionCtx, order_id: int) -> str:
    """Call something outside, which fails now and then: here, on the first attempt."""
    if ctx.attempt == 1:
        raise ConnectionError("the payment service hung up")
    return f"receipt-{order_id}"


@app.mutation
def order_charged(ctx: MutationCtx, result: RunResult, context: int) -> None:
    """Runs in the transaction that ends the run."""
    state = "paid" if isinstance(result, Success) else result.type
    ctx.db.execute("UPDATE orders SET state = ? WHERE id = ?", (state, context))


async def main() -> None:
    async with app.transaction() as ctx:
        ctx.db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT NOT NULL)")
        order_id = ctx.db.execute("INSERT INTO orders (state) VALUES ('new')").lastrowid
        run_id = await retrier.run(ctx, charge, {"order_id": order_id}, on_complete=order_charged, context=order_id)

    async with app.worker():
        result = await retrier.wait(app, run_id)
    assert result == Success("receipt-1")

    run = await retrier.get(app, run_id)
    assert [attempt.error for attempt in run.attempts] == ["the payment service hung up", None]

    async with app.transaction() as ctx:
        assert ctx.db.execute("SELECT state FROM orders").fetchall() == [("paid",)]
    print(f"{run.action} succeeded in attempt {run.attempts[-1].number}: {result.return_value}")


if __name__ == "__main__":
    asyncio.run(main())
