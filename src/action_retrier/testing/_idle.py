"""A worker in the test's own process that works until nothing is due, and moves a clock that the test owns."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

from .._mutations import run_in_loop
from .._worker import Worker
from ..app import App
from ..results import Run
from ..retrier import ActionRetrier
from ._clock import ManualClock
from ._faults import SimulatedCrash

LIMIT_S = 30.0
_JUMPS = 1000
_TOLD = 10


class NeverIdle(AssertionError):
    """What was to come to rest goes on: a run that retries for ever, or an action that does not return."""


async def run_until_idle(
    app: App,
    *,
    jump: bool = False,
    queues: Collection[str] | None = None,
    max_jumps: int = _JUMPS,
    timeout_s: float = LIMIT_S,
) -> list[Run]:
    """
    Run a worker in this process until nothing that it can run, or call back, is due.

    What dead workers left is recovered first. Runs that back off, or are scheduled, wait; with *jump* time moves
    on to the next of them again and again, until all have ended. Nothing sleeps.

    Args:
        app: Its database is the test's own: whatever is due in it is executed.
        jump: Move the app's `ManualClock` whenever nothing is due.
        queues: Only these; None means all.
        max_jumps: How often, before it is an error that runs are left.
        timeout_s: How long, in real time, it may take each time until nothing is due.

    Returns:
        The runs that have ended meanwhile, oldest first.

    Raises:
        NeverIdle: Runs were left after *max_jumps*, or did not end within *timeout_s*.
        ValueError: *jump*, and the app has no `ManualClock`.

    Example:
        >>> import asyncio
        >>> app = App("sqlite:///idle.db", clock=ManualClock())
        >>> @app.action(name="shop:charge")
        ... async def charge(order_id: int) -> str:
        ...     return f"charged {order_id}"
        >>> async def main() -> None:
        ...     async with app:
        ...         await ActionRetrier(app).run_after(app, 60_000, charge, {"order_id": 7})
        ...         (run,) = await run_until_idle(app, jump=True)
        ...         print(run.state, run.result)
        >>> asyncio.run(main())
        succeeded Success(type='success', return_value='charged 7')
    """
    clock = app._engine.clock
    if jump and not isinstance(clock, ManualClock):
        raise ValueError("jump=True moves a ManualClock: make the App with one, or give it one with isolated(...)")
    before = {run.id: run.completed_at async for run in _all_runs(app)}
    session = app.worker(queues=queues, grace_ms=0)
    try:
        worker = await session.__aenter__()
    except SimulatedCrash:
        return []  # it has died before it had begun
    async with contextlib.AsyncExitStack() as end:
        end.push_async_exit(session)
        for _ in range(max_jumps + 1):
            with contextlib.suppress(SimulatedCrash):
                await worker.recover_dead()
            await _until_idle(app, worker, timeout_s)
            if worker._stopped or not (jump and isinstance(clock, ManualClock)):
                break  # it has died, or time is not ours to move
            next_us = await worker.next_due_us()
            if next_us is None:
                break
            if next_us > 0:
                clock.advance(next_us / 1000)
        else:
            raise NeverIdle(f"after {max_jumps} jumps of the clock there is more to do: {await _left(app)}")
    after = [run async for run in _all_runs(app)]
    return [run for run in reversed(after) if run.completed_at not in {None, before.get(run.id)}]


def run_until_idle_sync(
    app: App,
    *,
    jump: bool = False,
    queues: Collection[str] | None = None,
    max_jumps: int = _JUMPS,
    timeout_s: float = LIMIT_S,
) -> list[Run]:
    """Like `run_until_idle`, and blocks."""
    runs: list[Run] = run_in_loop(
        lambda: run_until_idle(app, jump=jump, queues=queues, max_jumps=max_jumps, timeout_s=timeout_s)
    )
    return runs


async def _until_idle(app: App, worker: Worker, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await worker.until_idle()
    except TimeoutError:
        raise NeverIdle(f"not within timeout_s={timeout_s:g} s of real time: {await _left(app)}") from None


async def _all_runs(app: App) -> AsyncIterator[Run]:
    cursor = None
    retrier = ActionRetrier(app)
    while True:
        page = await retrier.list(app, limit=1000, cursor=cursor)
        for run in page.runs:
            yield run
        cursor = page.cursor
        if cursor is None:
            return


async def _left(app: App) -> str:
    """Say what has not ended, for people."""
    left = [
        run
        async for run in _all_runs(app)
        if run.completed_at is None or (run.callback is not None and run.callback.state == "pending")
    ]
    told = [f"{run.action} is {run.state} (run {run.id}, {len(run.attempts)} attempts)" for run in left[:_TOLD]]
    return "; ".join([*told, f"and {len(left) - _TOLD} more"] if len(left) > _TOLD else told) or "nothing that shows"
