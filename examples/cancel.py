"""`cancel` tells the truth: True canceled the run, False came too late."""

import asyncio
import threading

from action_retrier import ActionRetrier, App, Canceled, Success, SyncActionCtx

app = App("sqlite:///cancel.db")
retrier = ActionRetrier(app)
started = asyncio.Event()
cleaned_up: list[str] = []
thread_started = threading.Event()


@app.action
async def watch_feed() -> None:
    started.set()
    try:
        await asyncio.Event().wait()  # for ever
    finally:
        cleaned_up.append("feed")  # asyncio.CancelledError passes through here


@app.action
def crunch(ctx: SyncActionCtx) -> None:
    """A thread cannot be interrupted: it has to look, here every few milliseconds."""
    thread_started.set()
    while not ctx.canceled:
        threading.Event().wait(0.01)
    cleaned_up.append(f"crunch ({ctx.stop_reason})")


@app.action
async def quick() -> str:
    return "done"


async def main() -> None:
    async with app.worker() as worker:
        before = await retrier.run_after(app, 3_600_000, quick)
        assert await retrier.cancel(app, before) is True
        assert await retrier.cancel(app, before) is False  # it was this call that canceled it no more

        during = await retrier.run(app, watch_feed)
        await started.wait()
        assert await retrier.cancel(app, during) is True
        assert await retrier.wait(app, during) == Canceled()

        in_thread = await retrier.run(app, crunch)
        await asyncio.to_thread(thread_started.wait)
        assert await retrier.cancel(app, in_thread) is True

        after = await retrier.run(app, quick)
        assert await retrier.wait(app, after) == Success("done")
        assert await retrier.cancel(app, after) is False
        assert await retrier.wait(app, after) == Success("done")  # unchanged

        await worker.until_idle()
    assert sorted(cleaned_up) == ["crunch (canceled)", "feed"]
    print("cleaned up:", *cleaned_up)


if __name__ == "__main__":
    asyncio.run(main())
