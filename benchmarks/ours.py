"""The same through the library, as a user would call it."""

import asyncio
import logging
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime

from action_retrier import ActionRetrier, App, Call

_RUNNER = """
import asyncio, sys, time
from benchmarks.ours import make_app
app, _ = make_app(sys.argv[1])
due_s = float(sys.argv[3])
async def main():
    async with app, app.worker(concurrency=int(sys.argv[2])) as worker:
        print("ready", flush=True)
        if due_s:
            await asyncio.sleep(due_s - time.time())
            await worker.until_idle()
            print(time.time(), flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
_HEAD_START_S = 3.0
_SLOWEST_START = 2500  # a second


def make_app(url: str) -> tuple[App, ActionRetrier]:
    """Return an app with the actions that are measured."""
    logging.getLogger("action_retrier").setLevel(logging.ERROR)
    app = App(url)

    @app.action(name="benchmarks:noop")
    async def noop() -> None:
        pass

    @app.action(name="benchmarks:stamp")
    async def stamp(started_ns: int) -> int:
        return time.time_ns() - started_ns

    return app, ActionRetrier(app)


async def single_starts(url: str, count: int) -> float:
    """Start one run at a time. Returns runs per second."""
    app, retrier = make_app(url)
    async with app:
        began = time.perf_counter()
        for _ in range(count):
            await retrier.run(app, "benchmarks:noop")
        return count / (time.perf_counter() - began)


async def batch_starts(url: str, count: int, batch: int) -> float:
    """Start *batch* runs at a time. Returns runs per second."""
    app, retrier = make_app(url)
    async with app:
        began = time.perf_counter()
        for _ in range(count // batch):
            await retrier.run_many(app, [Call("benchmarks:noop") for _ in range(batch)])
        return count / (time.perf_counter() - began)


async def drain(url: str, count: int, concurrency: int) -> float:
    """Execute *count* no-op runs with one worker. Returns runs per second, until the last is durably done."""
    app, retrier = make_app(url)
    async with app:
        for _ in range(count // 1000):
            await retrier.run_many(app, [Call("benchmarks:noop") for _ in range(1000)])
        began = time.perf_counter()
        async with app.worker(concurrency=concurrency) as worker:
            await worker.until_idle()
            return count / (time.perf_counter() - began)


async def drain_by(url: str, count: int, workers: int) -> float:
    """Execute *count* no-op runs with so many worker processes, all ready when they fall due. Returns runs/s."""
    app, retrier = make_app(url)
    async with app:
        due_s = time.time() + _HEAD_START_S + count / _SLOWEST_START
        due = datetime.fromtimestamp(due_s, tz=UTC)
        processes = [_start_worker(url, 500, due_s) for _ in range(workers)]
        for _ in range(count // 1000):
            await asyncio.gather(*(retrier.run_at(app, due, "benchmarks:noop") for _ in range(1000)))
        assert time.time() < due_s
        try:
            ended = [float(await asyncio.to_thread(_line_of, process)) for process in processes]
            return count / (max(ended) - due_s)
        finally:
            for process in processes:
                await asyncio.to_thread(process.communicate, "")


def _start_worker(url: str, concurrency: int, due_s: float = 0) -> subprocess.Popen[str]:
    arguments = [url, str(concurrency), str(due_s)]
    process = subprocess.Popen(
        [sys.executable, "-c", _RUNNER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _line_of(process)
    return process


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


async def idle(url: str, seconds: float) -> float:
    """Have a worker with nothing to do. Returns the share of a core that its process uses, in percent."""
    app, _ = make_app(url)
    async with app, app.worker():
        await asyncio.sleep(2)
        began, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - used) / (time.perf_counter() - began) * 100


async def latency(url: str, count: int, *, across: bool) -> list[float]:
    """Start idle runs one by one, every 50 ms. Returns milliseconds from the call to the action's first line."""
    app, retrier = make_app(url)
    async with app:
        if not across:
            async with app.worker(concurrency=10):
                return await _latencies(app, retrier, count)
        process = _start_worker(url, 10)
        try:
            return await _latencies(app, retrier, count)
        finally:
            await asyncio.to_thread(process.communicate, "")


async def _latencies(app: App, retrier: ActionRetrier, count: int) -> list[float]:
    run_ids = []
    for _ in range(count):
        await asyncio.sleep(0.05)
        run_ids.append(await retrier.run(app, "benchmarks:stamp", {"started_ns": time.time_ns()}))
    # Asked afterwards, as the floor is: to wait for each would take a core from what is measured.
    return [(await retrier.wait(app, run_id)).return_value / 1e6 for run_id in run_ids]


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
