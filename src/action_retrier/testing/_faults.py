"""Deaths and lost answers at failpoints, in the test's own process."""

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from .._policy import check_count
from .._statements import Op
from .._worker import Worker
from ..app import App
from ..config import logger
from ..errors import DatabaseUnavailable
from ._app import check_app
from ._failpoints import By, Step, find
from ._watch import Watch, in_worker

Kind = Literal["crash", "error"]


class SimulatedCrash(BaseException):
    """What code sees whose process, in the test's story, is dead. It is no Exception: nobody should handle it."""


class NeverReached(AssertionError):
    """The failpoint of a block was not reached: nothing was tested."""


class _Process:
    """A worker as a process of its own: what runs in its context lives and dies with it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.is_dead = False
        self.ids: set[str] = set()
        self.burial: asyncio.Task[None] | None = None
        self.buried = asyncio.Event()

    def die(self, point: str) -> None:
        """From here on nothing of it has any effect."""
        if not self.is_dead:
            logger.warning("worker %s dies, by a test, at %s", self.worker.id or "that begins", point)
            logger.addFilter(_is_alive)  # for good, and only once: threads of the dead go on
            self.is_dead = True
            _dead.update(self.ids)
            loop: asyncio.AbstractEventLoop = self.worker._loop
            loop.call_soon_threadsafe(self._bury)

    def _bury(self) -> None:
        self.burial = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        """Stop what can be stopped, as the end of a process would: nothing is reported, given back or signed off."""
        worker = self.worker
        worker._stopping = True
        tasks: list[asyncio.Task[Any]] = list(worker._tasks)
        for execution in worker._executions._by_key.values():
            execution.reported = True
            execution.signals.stop_reason = "lease_lost"
            if execution.task is not None:
                tasks.append(execution.task)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=_BURIAL_S)
                await asyncio.gather(*(task for task in tasks if task.done()), return_exceptions=True)
                worker._claiming.close()
            worker._executions.close()
            await asyncio.to_thread(worker._incarnation.end)
        finally:
            worker._stopped = True
            worker._claiming.tell_of_the_end()
            self.buried.set()


_BURIAL_S = 5.0
_process: contextvars.ContextVar[_Process | None] = contextvars.ContextVar(
    "action_retrier_testing_process", default=None
)
_dead: set[str] = set()
"""Ids of workers that have died in this process: whoever looks need not wait until it shows."""


class Injected:
    """
    What a block injects.

    Attributes:
        point: The failpoint.
        happened: Whether it has been reached as often as was asked.
    """

    def __init__(self, app: App, point: str, *, nth: int, kind: Kind, error: BaseException | None) -> None:
        self.point = point
        self.happened = False
        self._app = app
        self._step = find("failpoint", point)
        self._nth = self._remaining = nth
        self._passed_outside = False
        self._lock = threading.Lock()
        self._kind = kind
        self._error = error
        self._watch = Watch(app, self._reach, _refuse_the_dead, point=self.point)

    def _reach(self, step: Step, moment: str) -> None:
        _refuse_the_dead()
        process = _process.get()
        if f"{step.name}.{moment}" != self.point:
            return
        if not self._concerns(process):
            self._passed_outside = True
            return
        with self._lock:
            self._remaining -= 1
            if self._remaining != 0:
                return
            self.happened = True
        if self._kind == "error":
            raise self._error or _lost_connection(self.point)
        if process is not None:
            process.die(self.point)
        raise SimulatedCrash(self.point)

    def _concerns(self, process: _Process | None) -> bool:
        """Whether it can happen to this one: a worker that was started outside the block is no process that can die."""
        is_a_worker = self._step.by == "worker" or in_worker.get()
        return process is not None or not is_a_worker or self._kind == "error"

    @contextlib.contextmanager
    def _active(self) -> Iterator["Injected"]:
        with _without_the_dead(self._app):
            self._watch.install()
            _watch_leases(self._watch, self._app)
            self._watch.shadow(self._app, "worker", _mortal)
            try:
                yield self
            except SimulatedCrash:
                if not self.happened:
                    raise
            finally:
                self._watch.remove()
        if not self.happened:
            raise NeverReached(self._why_not())

    def _why_not(self) -> str:
        """Say how near it came, and what to do."""
        reached = self._nth - self._remaining
        times = f"reached {reached} of {self._nth} times" if reached else "not reached"
        if self._passed_outside:
            return (
                f"{self.point} was {times} inside the block, but for a worker that was started outside of it, and "
                f"cannot die: {_TO_REACH['worker']}"
            )
        return f"{self.point} was {times} inside the block: {_TO_REACH[self._step.by]}"


_TO_REACH: dict[By, str] = {
    "worker": "start the worker, or call run_until_idle, in it, with something due",
    "caller": "make the call in it, through a retrier of this App",
    "opener": "open the App in it, which is not open before",
}


def _lost_connection(point: str) -> DatabaseUnavailable:
    """Return what a driver raises at such a moment; after a COMMIT that got no answer, nobody knows what it did."""
    problem = f"the connection was lost, by a test, at {point}"
    if point.endswith(".after_commit"):
        return DatabaseUnavailable(
            problem=f"{problem}, and whether it has committed is not known",
            remedy="look whether it did before you do it again",
        )
    return DatabaseUnavailable(problem=f"{problem}, and nothing was committed", remedy="do it again")


def crash_before(app: App, step: str, *, nth: int = 1) -> contextlib.AbstractContextManager[Injected]:
    """
    Have a process die before it does *step*: see `crash_at`.

    Example:
        >>> from action_retrier.testing import run_until_idle_sync
        >>> from action_retrier import SyncActionRetrier
        >>> app = App("sqlite:///crash.db")
        >>> sent = []
        >>> @app.action(name="shop:send", initial_backoff_ms=1)
        ... def send() -> None:
        ...     sent.append("letter")
        >>> with app:
        ...     run_id = SyncActionRetrier(app).run(app, send)
        ...     with crash_before(app, "report"):
        ...         runs = run_until_idle_sync(app)
        ...     print(sent, runs)
        ['letter'] []
    """
    return crash_at(app, find("step", step).points[0], nth=nth)


def crash_after(app: App, step: str, *, nth: int = 1) -> contextlib.AbstractContextManager[Injected]:
    """Have a process die when *step* is done and committed, before it or anybody else knows: see `crash_at`."""
    return crash_at(app, find("step", step).points[-1], nth=nth)


def crash_at(app: App, point: str, *, nth: int = 1) -> contextlib.AbstractContextManager[Injected]:
    """
    Have a process die at a failpoint, inside the block.

    What a worker does kills the worker that comes to it, as if it were a process of its own: its open transactions
    roll back, nothing that it or its actions do through the app has any effect from then on, and nothing is reported
    or given back. Its lease is over, and the next worker recovers what it has left. An async action is canceled; a
    thread cannot be, sees ``ctx.canceled``, and what it writes through the app is refused.

    What a caller does (``start``, ``cancel``, ...) ends the block there, by a `SimulatedCrash` that the block catches;
    an action or a callback that does it kills its worker.

    Args:
        app: Its workers must be started inside the block.
        point: One of `failpoints`.
        nth: Not the first time that it is reached, but this one.

    Returns:
        A context manager; what it gives knows whether it has ``happened``.

    Raises:
        NeverReached: At the end of the block, if it has not: it says how near it came.
    """
    return _inject(app, point, nth, "crash", None)


def fail_before(
    app: App, step: str, *, error: BaseException | None = None, nth: int = 1
) -> contextlib.AbstractContextManager[Injected]:
    """Have *step* fail once, with nothing done: see `fail_at`."""
    return fail_at(app, find("step", step).points[0], error=error, nth=nth)


def fail_after(
    app: App, step: str, *, error: BaseException | None = None, nth: int = 1
) -> contextlib.AbstractContextManager[Injected]:
    """Have *step* done and committed, and its answer be lost, once: see `fail_at`."""
    return fail_at(app, find("step", step).points[-1], error=error, nth=nth)


def fail_at(
    app: App, point: str, *, error: BaseException | None = None, nth: int = 1
) -> contextlib.AbstractContextManager[Injected]:
    """
    Raise an error at a failpoint once, inside the block; everybody lives on, and does it again where that is promised.

    Args:
        app, point, nth: As `crash_at` takes them.
        error: By default `DatabaseUnavailable`, as a lost connection raises it; with the advice that belongs to the
            moment: after a commit, to look before it is done again.
    """
    return _inject(app, point, nth, "error", error)


def _inject(
    app: App, point: str, nth: int, kind: Kind, error: BaseException | None
) -> contextlib.AbstractContextManager[Injected]:
    check_app(app)
    check_count("nth", nth, at_least=1)
    return Injected(app, point, nth=nth, kind=kind, error=error)._active()


@contextlib.contextmanager
def _without_the_dead(app: App) -> Iterator[None]:
    """
    Refuse what threads of dead workers want.

    The outermost block does so, beneath whatever the others shadow, and for good once somebody has died in it: such
    threads go on after it.
    """
    database: Any = app._database
    if getattr(database, "_refuses_the_dead", False):
        yield
        return
    dead = len(_dead)
    watch = Watch(app, lambda _step, _moment: None, _refuse_the_dead)
    watch.install(only_database=True)
    database._refuses_the_dead = True
    try:
        yield
    finally:
        if len(_dead) == dead:
            watch.remove()
            del database._refuses_the_dead


def _refuse_the_dead() -> None:
    process = _process.get()
    if process is not None and process.is_dead:
        raise SimulatedCrash("its process is dead")


def _is_alive(_record: logging.LogRecord) -> bool:
    """Let nothing into the log of what the code of a dead process makes of its death."""
    process = _process.get()
    return process is None or not process.is_dead


def _mortal(make_session: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes workers each of which is a process of its own."""

    def worker(**options: Any) -> Any:
        session = make_session(**options)
        make = session.make
        session.make = lambda: _as_process(make())
        return session

    return worker


def _as_process(worker: Worker) -> Worker:
    process = _Process(worker)
    start, stop = worker.start, worker.stop

    async def start_in_process() -> None:
        worker._loop = asyncio.get_running_loop()
        try:
            await _run_in(process, start())
        except SimulatedCrash:
            await process.buried.wait()
            raise

    async def stop_in_process() -> None:
        if not process.is_dead:
            # It may die in this, too.
            with contextlib.suppress(SimulatedCrash):
                await _run_in(process, stop())
        if process.is_dead:
            await process.buried.wait()

    worker.start, worker.stop = start_in_process, stop_in_process  # type: ignore[method-assign]
    return worker


async def _run_in(process: _Process, coroutine: Any) -> None:
    context = contextvars.copy_context()
    context.run(_process.set, process)
    await asyncio.create_task(coroutine, context=context)


def _watch_leases(watch: Watch, app: App) -> None:
    """Know whose lease it is; and let everybody know at once who has died here."""
    leases = app._database.leases
    owners: dict[str, _Process] = {}

    def acquiring(original: Any) -> Any:
        def acquire(worker: str) -> None:
            process = _process.get()
            if process is not None:
                owners[worker] = process
                process.ids.add(worker)
            original(worker)

        return acquire

    def renewing(original: Any) -> Any:
        def renew(worker: str) -> bool:
            before = _process.set(owners.get(worker))  # the heartbeat has a thread of its own
            try:
                return bool(original(worker))
            except SimulatedCrash:
                return True
            finally:
                _process.reset(before)

        return renew

    watch.shadow(leases, "acquire", acquiring)
    watch.shadow(leases, "renew", renewing)
    if "is_still_dead" not in vars(leases):  # this stays: somebody has to know the dead when the block has ended
        _know_the_dead(leases)


def _know_the_dead(leases: Any) -> None:
    dead, is_still_dead, release = leases.dead, leases.is_still_dead, leases.release

    async def known_dead(workers: Iterable[str]) -> list[str]:
        asked = list(workers)
        others = [worker for worker in asked if worker not in _dead]
        found = set(await dead(others)) if others else set()
        return [worker for worker in asked if worker in _dead or worker in found]

    def known_still_dead(worker: str) -> Op[bool]:
        if worker in _dead:
            return True
        return bool((yield from is_still_dead(worker)))

    def release_as_death_does(worker: str, *, signed_off: bool = True) -> None:
        release(worker, signed_off=signed_off and worker not in _dead)

    leases.dead, leases.is_still_dead, leases.release = known_dead, known_still_dead, release_as_death_does
