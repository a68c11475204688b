"""Steering errors: `RetryAfter` sets the next delay, `NonRetryableError` and `no_retry_on` end the run."""

import asyncio

from action_retrier import ActionCtx, ActionRetrier, App, Failed, NonRetryableError, RetryAfter, Success
from action_retrier.testing import ManualClock

clock = ManualClock()
app = App("sqlite:///retry_after.db", clock=clock)
retrier = ActionRetrier(app, max_backoff_ms=1_000)

TWO_MINUTES_MS = 120_000


class TooManyRequests(Exception):
    pass


class CardDeclined(Exception):
    pass


@app.action
async def call_api(ctx: ActionCtx) -> str:
    if ctx.attempt == 1:
        # The server said: Retry-After: 120. The cause is what the run reports.
        raise RetryAfter(TWO_MINUTES_MS) from TooManyRequests("429")
    return "answered"


@app.action
async def import_row(row: str) -> None:
    raise NonRetryableError(f"{row!r} is no row")


@app.action(no_retry_on=CardDeclined)
async def charge() -> None:
    raise CardDeclined("insufficient funds")


async def main() -> None:
    async with app.worker() as worker:
        busy = await retrier.run(app, call_api)
        await worker.until_idle()
        (attempt,) = (await retrier.get(app, busy)).attempts
        assert attempt.error_type == f"{__name__}.TooManyRequests"
        # Never earlier, at most 10 % later, and not capped by max_backoff_ms.
        assert attempt.delay_ms is not None
        assert TWO_MINUTES_MS <= attempt.delay_ms <= TWO_MINUTES_MS * 1.1
        clock.advance(attempt.delay_ms)
        assert await retrier.wait(app, busy) == Success("answered")

        hopeless = await retrier.run(app, import_row, {"row": "???"})
        declined = await retrier.run(app, charge)
        await worker.until_idle()
        for run_id in (hopeless, declined):
            run = await retrier.get(app, run_id)
            assert isinstance(run.result, Failed)
            assert len(run.attempts) == 1
            print(f"{run.action}: {run.result.error_type}: {run.result.error}")


if __name__ == "__main__":
    asyncio.run(main())
