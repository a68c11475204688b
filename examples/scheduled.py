"""Start later, start many, and what goes first."""

import asyncio
from datetime import timedelta

from action_retrier import ActionRetrier, App, Call
from action_retrier.testing import ManualClock

clock = ManualClock()
app = App("sqlite:///scheduled.db", clock=clock)
retrier = ActionRetrier(app)
done: list[str] = []


@app.action
async def remind(who: str) -> None:
    done.append(who)


async def main() -> None:
    tomorrow = clock.now() + timedelta(days=1)
    await retrier.run_at(app, tomorrow, remind, {"who": "tomorrow"})
    await retrier.run_after(app, 60_000, remind, {"who": "in a minute"})
    # All or none of them, in one transaction. A bind is a pair of action and arguments, checked by type checkers too.
    await retrier.run_many(
        app,
        [
            Call(remind, {"who": "now"}),
            Call(remind.bind(who="now, and urgent"), priority=10),
        ],
    )

    async with app.worker(concurrency=1) as worker:
        await worker.until_idle()
        assert done == ["now, and urgent", "now"]

        clock.advance(59_999)
        await worker.until_idle()
        assert done[2:] == []

        clock.advance(1)
        await worker.until_idle()
        assert done[2:] == ["in a minute"]

        clock.advance(24 * 3_600_000)
        await worker.until_idle()
        assert done[3:] == ["tomorrow"]
    print(*done, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
