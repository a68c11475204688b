"""What an operator does: look, retry what has failed, clean up."""

import asyncio

from action_retrier import ActionRetrier, App, Failed, RunInProgress, RunNotFound, RunSucceeded, Success

app = App("sqlite:///by_hand.db")
retrier = ActionRetrier(app, max_failures=0)
service_is_up = asyncio.Event()


@app.action
async def push(item: str) -> str:
    if not service_is_up.is_set():
        raise ConnectionError("the service is down")
    return f"pushed {item}"


async def main() -> None:
    async with app.worker() as worker:
        run_ids = [await retrier.run(app, push, {"item": item}) for item in ("a", "b", "c")]
        await worker.until_idle()
        page = await retrier.list(app, state="failed", limit=2)  # newest first
        assert [run.id for run in page.runs] == [run_ids[2], run_ids[1]]
        page = await retrier.list(app, state="failed", limit=2, cursor=page.cursor)
        assert ([run.id for run in page.runs], page.cursor) == ([run_ids[0]], None)
        assert page.runs[0].result == Failed("the service is down", "ConnectionError")
        print(page.runs[0].attempts[0].traceback)

        service_is_up.set()
        assert await retrier.retry(app, run_ids[0]) == run_ids[0]  # one, under the same id
        others = await retrier.retry_all(app, action=push)
        assert others == len(run_ids) - 1
        await worker.until_idle()
        assert [await retrier.wait(app, run_id) for run_id in run_ids] == [
            Success("pushed a"),
            Success("pushed b"),
            Success("pushed c"),
        ]
        # Attempt numbers go on; the count of failures began anew.
        assert [attempt.number for attempt in (await retrier.get(app, run_ids[0])).attempts] == [1, 2]

        try:
            await retrier.retry(app, run_ids[0])
        except RunSucceeded as error:
            print(error)

        later = await retrier.run_after(app, 60_000, push, {"item": "d"})
        try:
            await retrier.cleanup(app, later)
        except RunInProgress as error:
            print(error)

        await retrier.cleanup(app, run_ids[0])  # or wait: completed runs are removed after retention_days
        try:
            await retrier.status(app, run_ids[0])
        except RunNotFound as error:
            print(error)
        else:
            raise AssertionError("it is still there")


if __name__ == "__main__":
    asyncio.run(main())
