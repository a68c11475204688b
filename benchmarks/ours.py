"""The same through the library, as a user would call it."""

import asyncio
import logging
import statistics
import subprocess
import sys
import time
from pathlib import Path

from action_retrier import ActionRetrier, App, Call

_RUNNER = """
import sys, time, asyncio
from benchmarks.ours import make_app
app, _ = make_app(sys.argv[1])
async def main():
    async with app, app.worker(concurrency=10):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


def make_app(path: str) -> tuple[App, ActionRetrier]:
    """Return an app with the actions that are measured."""
    logging.getLogger("action_retrier").setLevel(logging.ERROR)
    app = App(f"sqlite:///{path}")

    @app.action(name="benchmarks:noop")
    async def noop() -> None:
        pass

    @app.action(name="benchmarks:stamp")
    async def stamp(started_ns: int) -> int:
        return time.time_ns() - started_ns

    return app, ActionRetrier(app)


async def single_starts(path: Path, count: int) -> float:
    """Start one run at a time. Returns runs per second."""
    app, retrier = make_app(str(path))
    async with app:
        began = time.perf_counter()
        for _ in range(count):
            await retrier.run(app, "benchmarks:noop")
        return count / (time.perf_counter() - began)


async def batch_starts(path: Path, count: int, batch: int) -> float:
    """Start *batch* runs at a time. Returns runs per second."""
    app, retrier = make_app(str(path))
    async with app:
        began = time.perf_counter()
        for _ in range(count // batch):
            await retrier.run_many(app, [Call("benchmarks:noop") for _ in range(batch)])
        return count / (time.perf_counter() - began)


async def drain(path: Path, count: int, concurrency: int) -> float:
    """Execute *count* no-op runs with one worker. Returns runs per second, until the last is durably done."""
    app, retrier = make_app(str(path))
    async with app:
        for _ in range(count // 1000):
            await retrier.run_many(app, [Call("benchmarks:noop") for _ in range(1000)])
        began = time.perf_counter()
        async with app.worker(concurrency=concurrency) as worker:
            await worker.until_idle()
            return count / (time.perf_counter() - began)


async def latency(path: Path, count: int, *, across: bool) -> list[float]:
    """Start idle runs one by one, every 50 ms. Returns milliseconds from the call to the action's first line."""
    app, retrier = make_app(str(path))
    async with app:
        if not across:
            async with app.worker(concurrency=10):
                return await _latencies(app, retrier, count)
        process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on this loop yet
            [sys.executable, "-c", _RUNNER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            return await _latencies(app, retrier, count)
        finally:
            await asyncio.to_thread(process.communicate, "")


async def _latencies(app: App, retrier: ActionRetrier, count: int) -> list[float]:
    found = []
    for _ in range(count):
        await asyncio.sleep(0.05)
        run_id = await retrier.run(app, "benchmarks:stamp", {"started_ns": time.time_ns()})
        result = await retrier.wait(app, run_id)
        found.append(result.return_value / 1e6)
    return found


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
