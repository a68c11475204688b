"""A worker in the test's own process that works until nothing is due, and moves a clock that the test owns."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from datetime import datetime

from .._mutations import run_in_loop
from .._open_transactions import refuse_worker_inside_transaction
from .._ops.claims import ANY_LOSSES, earliest, next_due
from .._worker import Worker
from ..app import App
from ..errors import DatabaseUnavailable
from ..results import Run
from ..retrier import ActionRetrier
from ._app import check_app
from ._clock import ManualClock
from ._mortal import SimulatedCrash

LIMIT_S = 30.0
_JUMPS = 1000
_TOLD = 10
_SHOWN = 200


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

    Time is everybody's: where it moves past the deadline of a run of another queue, that run has failed.

    Args:
        app: Its database is the test's own: whatever is due in it is executed.
        jump: Move the app's `ManualClock` whenever nothing is due.
        queues: Only these; None means all.
        max_jumps: How often, before it is an error that runs are left.
        timeout_s: How long, in real time, it may take each time until nothing is due.

    Returns:
        The runs that have ended meanwhile, oldest first; also those that retention has removed since. Not those that
        were tried, and wait: `ActionRetrier.get` tells of them.

    Raises:
        NeverIdle: Runs were left after *max_jumps*, or did not end within *timeout_s*.
        InvalidContext: A transaction of the app's is open here: its worker would wait for it.
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
    _check(app)
    clock = app._engine.clock
    if jump and not isinstance(clock, ManualClock):
        raise ValueError("jump=True moves a ManualClock: make the App with one, or give it one with isolated(...)")
    ended = _Ended(app, before={run.id: run.completed_at async for run in _all_runs(app)})
    session = app.worker(queues=queues, grace_ms=0)
    try:
        async with asyncio.timeout(timeout_s):
            worker = await session.__aenter__()
    except SimulatedCrash:
        return []  # it has died before it had begun
    except TimeoutError:
        raise NeverIdle(
            f"its worker could not begin within timeout_s={timeout_s:g} s of real time: look for a transaction that "
            "stays open, such as on a connection of the test's own"
        ) from None
    async with contextlib.AsyncExitStack() as end:
        end.push_async_exit(session)
        for _ in range(max_jumps + 1):
            await _until_idle(app, worker, timeout_s)
            if worker._stopped or not (jump and isinstance(clock, ManualClock)):
                break  # it has died, or time is not ours to move
            next_us = await _next_due_us(app, worker, queues)
            if next_us is None:
                break
            if next_us > 0:
                await ended.note_what_goes(within_us=next_us)
                clock.advance(next_us / 1000)
        else:
            raise NeverIdle(f"after {max_jumps} jumps of the clock there is more to do: {await _left(app)}")
    return await ended.all()


def run_until_idle_sync(
    app: App,
    *,
    jump: bool = False,
    queues: Collection[str] | None = None,
    max_jumps: int = _JUMPS,
    timeout_s: float = LIMIT_S,
) -> list[Run]:
    """Like `run_until_idle`, and blocks."""
    _check(app)  # here: the thread that it runs in has no transaction open
    runs: list[Run] = run_in_loop(
        lambda: run_until_idle(app, jump=jump, queues=queues, max_jumps=max_jumps, timeout_s=timeout_s)
    )
    return runs


def _check(app: App) -> None:
    check_app(app)
    refuse_worker_inside_transaction(app._database.turn, "run_until_idle was called")


class _Ended:
    """The runs that end from now on."""

    def __init__(self, app: App, before: dict[str, datetime | None]) -> None:
        """Begin now; *before* tells since when the others have ended, or that they have not."""
        self._app = app
        self._before = before
        self._runs: dict[str, Run] = {}
        self._noted_us = app._engine.clock.now_us()

    async def note_what_goes(self, *, within_us: int) -> None:
        """Note what has ended, if it may be removed while time moves on so far."""
        engine = self._app._engine
        if engine.clock.now_us() + within_us >= self._noted_us + engine.retention_us:
            await self.all()

    async def all(self) -> list[Run]:
        """Return them, oldest first."""
        self._noted_us = self._app._engine.clock.now_us()
        async for run in _all_runs(self._app):
            if run.completed_at not in {None, self._before.get(run.id)}:
                self._runs[run.id] = run
        return [self._runs[run_id] for run_id in sorted(self._runs)]


async def _next_due_us(app: App, worker: Worker, queues: Collection[str] | None) -> int | None:
    """Tell in how long there is something for this worker to do; deadlines in others' queues are not its business."""
    if queues is None:
        return await worker.next_due_us()
    claimant = worker._incarnation.claimant
    due = await app._database.read(lambda: next_due(claimant, ANY_LOSSES))
    return earliest(due.runs_us, due.callbacks_us)


async def _recover_dead(worker: Worker) -> None:
    with contextlib.suppress(SimulatedCrash):
        try:
            await worker.recover_dead()
        except DatabaseUnavailable:
            await worker.recover_dead()  # as a worker does that looks again by itself


async def _until_idle(app: App, worker: Worker, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await _recover_dead(worker)
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
    told = [_told(run) for run in left[:_TOLD]]
    return "; ".join([*told, f"and {len(left) - _TOLD} more"] if len(left) > _TOLD else told) or "nothing that shows"


def _told(run: Run) -> str:
    if run.completed_at is not None and run.callback is not None:
        tries, error = f"{run.callback.tries} tries", run.callback.last_error
        what = f"callback {run.callback.name} is {run.callback.state} (run {run.id}, {tries})"
    else:
        last = next((attempt for attempt in reversed(run.attempts) if attempt.error_type is not None), None)
        error = None if last is None else f"{last.error_type}: {last.error}"
        what = f"{run.action} is {run.state} (run {run.id}, {len(run.attempts)} attempts)"
    return what if error is None else f"{what}, the last error {error:.{_SHOWN}}"
