"""Deaths and lost answers at failpoints, in the test's own process."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Literal

from .._policy import check_count
from ..app import App
from ..errors import DatabaseUnavailable
from ._app import check_app
from ._failpoints import By, Step, find
from ._mortal import MortalProcess, SimulatedCrash, current, mortal, refuse_the_dead, watch_leases, without_the_dead
from ._watch import Watch, in_worker

Kind = Literal["crash", "error"]


class NeverReached(AssertionError):
    """The failpoint of a block was not reached: nothing was tested."""


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
        self._watch = Watch(app, self._reach, refuse_the_dead, point=self.point)

    def _reach(self, step: Step, moment: str) -> None:
        refuse_the_dead()
        process = current.get()
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

    def _concerns(self, process: MortalProcess | None) -> bool:
        """Whether it can happen to this one: a worker that was started outside the block is no process that can die."""
        is_a_worker = self._step.by == "worker" or in_worker.get()
        return process is not None or not is_a_worker or self._kind == "error"

    @contextlib.contextmanager
    def _active(self) -> Iterator["Injected"]:
        with without_the_dead(self._app):
            self._watch.install()
            watch_leases(self._watch, self._app)
            self._watch.shadow(self._app, "worker", mortal)
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
