"""`attempt_timeout_ms` bounds one attempt, `deadline_ms` the whole run."""

import asyncio

from action_retrier import ActionCtx, ActionRetrier, App, Failed, Success
from action_retrier.testing import ManualClock

clock = ManualClock()
app = App("sqlite:///time_limits.db", clock=clock)
retrier = ActionRetrier(app, initial_backoff_ms=1_000, jitter=0)
hanging = asyncio.Event()


@app.action(attempt_timeout_ms=5_000)
async def ask(ctx: ActionCtx) -> str:
    if ctx.attempt == 1:
        hanging.set()
        await asyncio.Event().wait()  # no answer, ever
    return "answered"


@app.action(deadline_ms=10_000)
async def ask_in_vain() -> None:
    raise ConnectionError("nobody there")


async def main() -> None:
    async with app.worker() as worker:
        run_id = await retrier.run(app, ask)
        await hanging.wait()
        clock.advance(5_000)  # the attempt is cancelled, and counts as a failure
        await worker.until_idle()
        clock.advance(1_000)
        assert await retrier.wait(app, run_id) == Success("answered")
        assert (await retrier.get(app, run_id)).attempts[0].error_type == "TimedOut"

        run_id = await retrier.run(app, ask_in_vain)
        for _ in range(8):
            await worker.until_idle()
            clock.advance(1_000)
        # The attempts at 0, 1, 3 and 7 s failed, and the next would have been due at 15 s: after the deadline.
        assert await retrier.wait(app, run_id) == Failed("nobody there", "ConnectionError")
        run = await retrier.get(app, run_id)
        assert [attempt.delay_ms for attempt in run.attempts] == [1_000, 2_000, 4_000, None]
    print("timed out once, then answered; and given up at the deadline")


if __name__ == "__main__":
    asyncio.run(main())
