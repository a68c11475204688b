"""
At least once, made harmless: `ctx.run_id` is the same in every attempt.

The first attempt reaches the payment service, and the answer is lost on the way back. The second
one repeats the request under the same key, and the service recognises it. At the other end,
`idempotency_key` keeps a double click from starting two runs.
"""

import asyncio

from action_retrier import ActionCtx, ActionRetrier, App, IdempotencyConflict, Success

app = App("sqlite:///idempotency.db")
retrier = ActionRetrier(app, initial_backoff_ms=10)
payments: dict[str, int] = {}  # what the payment service has on record, by idempotency key


def payment_service(key: str, amount: int) -> str:
    """Does what is asked once for each key, as payment services do."""
    payments.setdefault(key, amount)
    return f"payment of {payments[key]} cents"


@app.action
async def charge(ctx: ActionCtx, order_id: int, amount: int) -> str:
    receipt = payment_service(key=ctx.run_id, amount=amount)
    if ctx.attempt == 1:
        raise TimeoutError("no answer in time")  # but the service has taken the money
    return f"order {order_id}: {receipt}"


async def main() -> None:
    click = {"order_id": 7, "amount": 950}
    async with app.worker():
        run_id = await retrier.run(app, charge, click, idempotency_key="order-7")
        again = await retrier.run(app, charge, click, idempotency_key="order-7")
        assert again == run_id
        assert await retrier.wait(app, run_id) == Success("order 7: payment of 950 cents")

    assert [attempt.error for attempt in (await retrier.get(app, run_id)).attempts] == ["no answer in time", None]
    assert payments == {run_id: 950}

    try:
        await retrier.run(app, charge, click | {"amount": 1}, idempotency_key="order-7")
    except IdempotencyConflict as error:
        print(error)
    else:
        raise AssertionError("one key was used for two different orders")


if __name__ == "__main__":
    asyncio.run(main())
