"""What waits for its turn on a connection that one thread owns, and how whoever waits hears of its end."""

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from .._statements import Op, Statement
from ..errors import DatabaseUnavailable

_GROUP = 200  # operations at once at most: others wait for them
_CLOSE_S = 10.0


class Signal:
    """What one thread waits for, once: a `threading.Event` takes three times as long to make."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let whoever waits go on; to be called once."""
        self._lock.release()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait, and tell whether it has been set."""
        if not self._lock.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0)):
            return False
        self._lock.release()
        return True


class Job:
    """Something that waits for its turn, and what came of it. Without *make* it is a loan."""

    def __init__(self, make: Callable[[], Op[Any]] | None = None) -> None:
        self.make = make
        self.began = False  # it is done, or lent: nobody may take it back any more
        self.unwanted = False
        self.tried_since_s: float | None = None  # the first try that was in vain
        self.in_doubt = False  # an earlier try may have been committed
        self.opened: tuple[Op[Any], Statement | None] | None = None  # made, and what it has yielded
        self.result: Any = None
        self.error: BaseException | None = None

    def outcome(self) -> Any:
        """Return or raise what came of it."""
        if self.error is not None:
            raise self.error
        return self.result


class ThreadJob(Job):
    """A job that a thread waits for."""

    def __init__(self, make: Callable[[], Op[Any]] | None = None) -> None:
        super().__init__(make)
        self.done = Signal()
        self.thread = threading.get_ident()


class LoopJob(Job):
    """A job that a coroutine waits for."""

    def __init__(self, make: Callable[[], Op[Any]] | None = None) -> None:
        super().__init__(make)
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()


class OnLoop(Protocol):
    """What is done on an event loop, and can be gone on with in a thread: user code may be blocking the loop."""

    late_at_s: float
    """When whoever waits for its turn need not wait any longer, by `time.monotonic`."""

    def leave(self) -> None:
        """Leave the rest to the thread, which is told what to do."""


class Jobs(ABC):
    """
    A queue of jobs and the thread that does them.

    What comes in while the thread is busy is taken together afterwards: load makes batches, and
    an idle system begins at once.
    """

    def __init__(self, name: str, location: str) -> None:
        self._location = location
        self._queue: deque[Job] = deque()
        # As it is, not through the Condition: written in Python, that might be left locked by a signal's handler.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._stopping = False
        self._turn: object | None = None  # whose it is to do jobs: the thread's (self), or that of a caller (a job)
        self._handed: Callable[[], None] | None = None  # what the thread is to do in the place of a caller
        self._on_loop: OnLoop | None = None  # what an event loop has the turn for
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    # The callers' side.

    async def run(self, make: Callable[[], Op[Any]], patience_s: float | None) -> Any:
        """Run an operation and return what came of it."""
        return await self.wait(LoopJob(make), patience_s)

    def run_sync(self, make: Callable[[], Op[Any]], patience_s: float | None) -> Any:
        """Run an operation; in the caller's thread if nobody is at it, since each change of threads costs as much."""
        job = ThreadJob(make)
        try:
            if self._is_ready and self._take_turn(job):
                self._do_here(job)
                self._pass_turn(job)
            else:
                self._put(job)
        except BaseException:  # a signal's handler has raised: nobody knows in the midst of what
            try:
                if self._turn is job:
                    self._break_off(job)
            finally:
                self._pass_turn(job)
                self._withdraw(job)
            raise
        return self._outcome_of(job, patience_s)  # it is queued, perhaps: it has failed, or would have had to wait

    def close(self) -> None:
        """Finish what is queued and let go of the connection; not at once, if somebody keeps a transaction open."""
        with self._lock:
            self._stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread and not self._is_our_turn:
            self._thread.join(_CLOSE_S)

    @property
    def _is_our_turn(self) -> bool:
        """Whether this thread is doing a job of its own: a signal's handler, or a finalizer, has interrupted it."""
        return isinstance(self._turn, ThreadJob) and self._turn.thread == threading.get_ident()

    async def wait(self, job: LoopJob, patience_s: float | None) -> Any:
        """Queue a job, and return or raise what came of it."""
        self._put(job)
        return await self._outcome_on_loop(job, patience_s)

    async def _outcome_on_loop(self, job: LoopJob, patience_s: float | None) -> Any:
        """Wait for a job, and return or raise what came of it."""
        timer = None
        if patience_s is not None:
            timer = job.loop.call_later(patience_s, self._give_up, job)
        try:
            await job.done
        except BaseException:  # a cancellation, or the end of a coroutine that was forgotten
            self._withdraw(job)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return job.outcome()

    def wait_sync(self, job: ThreadJob, patience_s: float | None) -> Any:
        """Queue a job, and return or raise what came of it."""
        self._put(job)
        return self._outcome_of(job, patience_s)

    def _outcome_of(self, job: ThreadJob, patience_s: float | None) -> Any:
        """Wait for a job, and return or raise what came of it."""
        try:
            if not job.done.wait(patience_s) and self._refuse(job):
                raise self._too_long()  # noqa: TRY301 - what follows undoes nothing of it
            job.done.wait()
        except BaseException:  # a signal's handler may raise anything
            self._withdraw(job)
            raise
        return job.outcome()

    def _give_up(self, job: LoopJob) -> None:
        if not job.done.done() and self._refuse(job):
            job.done.set_exception(self._too_long())

    def _put(self, job: Job) -> None:
        with self._lock:
            if self._stopping:
                raise DatabaseUnavailable(problem=f"{self._location} has been closed", remedy="open the App again")
            if isinstance(job, ThreadJob) and self._is_our_turn:
                raise DatabaseUnavailable(
                    problem=f"{self._location}: a signal's handler, or a finalizer, has interrupted this thread as it "
                    "wrote, and would wait for it",
                    remedy="have it set a flag, and make the call where that is looked at, or in another thread",
                )
            self._queue.append(job)
            self._changed.notify()

    def _refuse(self, job: Job) -> bool:
        """Take back a job that has waited for too long. False: its turn has come after all."""
        with self._lock:
            if job.began:
                return False
            self._take_out(job)
            return True

    def _take_out(self, job: Job) -> None:
        """Have a job not done: it is queued, or its turn has come in this process, and not among all."""
        job.unwanted = True
        with contextlib.suppress(ValueError):
            self._queue.remove(job)

    def _withdraw(self, job: Job) -> None:
        """Take back a job that nobody waits for any more. A loan ends as soon as it is handed over."""
        with self._lock:
            if not job.began:
                self._take_out(job)
                return
            loan = job.result
        if job.make is None and loan is not None:
            loan.give_back("rollback")

    @property
    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether a caller need not wait before a job of his is begun."""

    @abstractmethod
    def _do_here(self, job: Job) -> None:
        """Do a job in the thread of its caller, whose turn it is, or queue it if that would mean to wait."""

    @abstractmethod
    def _break_off(self, job: Job) -> None:
        """Leave nothing of a job that was done here, and has been interrupted wherever it was."""

    @abstractmethod
    def _too_long(self) -> DatabaseUnavailable:
        """Return what a job that was taken back for its impatience fails with."""

    # The thread's side.

    @abstractmethod
    def _work(self) -> None:
        """Serve, and let go of the connection afterwards."""

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            task()
            self._pass_turn(self)

    def _next(self) -> Callable[[], None] | None:
        """Wait for what is to be done next, and take the turn; None when all has been done for good."""
        with self._lock:
            while self._handed is None and (self._turn or not (self._queue or self._stopping)):
                self._changed.wait(self._take_from_loop())
            if self._handed is not None:
                task, self._handed = self._handed, None
                return task
            if not self._queue:
                return None
            self._turn = self
            return partial(self._do, self._take())

    def _take_from_loop(self) -> float | None:
        """Take over what a loop is too late with, if somebody waits for it; else return for how long it still may."""
        if self._on_loop is None or not (self._queue or self._stopping):
            return None
        left_s = self._on_loop.late_at_s - time.monotonic()
        if left_s <= 0:
            self._on_loop.leave()
            return 0
        return left_s

    def _take_turn(self, job: Job) -> bool:
        """Have the caller do a job in the thread's place, if nobody is at it or waits. The turn has to be passed on."""
        with self._lock:
            if self._turn or self._queue or self._stopping:
                return False
            self._turn = job
            return True

    def _leave_to_thread(self, task: Callable[[], None]) -> None:
        """Have the thread do *task*, and pass the turn on, in the place of whoever has it."""
        with self._lock:
            self._handed, self._turn = task, self
            self._changed.notify()

    def _pass_turn(self, whose: object) -> None:
        """Let the thread do what has been queued meanwhile, unless it is somebody else's turn by now."""
        with self._lock:
            if self._turn is not whose and self._turn is not None:
                return
            self._turn = None
            if self._queue or self._stopping:
                self._changed.notify()

    def _take(self) -> list[Job]:
        """Take a loan, or the operations up to the next one."""
        jobs = [self._queue.popleft()]
        while jobs[0].make is not None and self._queue and self._queue[0].make is not None and len(jobs) < _GROUP:
            jobs.append(self._queue.popleft())
        return jobs

    def begin(self, jobs: list[Job]) -> list[Job]:
        """Return those that are still wanted now that the lock is ours; from here on they cannot be taken back."""
        with self._lock:
            wanted = [job for job in jobs if not job.unwanted]
            for job in wanted:
                job.began = True
        return wanted

    @abstractmethod
    def _do(self, jobs: list[Job]) -> None:
        """Do jobs that have been taken, and deliver them. Never raises."""


def deliver(jobs: list[Job]) -> bool:
    """Wake whoever waits for the jobs, each event loop once. False: one of those was closed, and nobody waits."""
    heard = True
    loops: dict[asyncio.AbstractEventLoop, list[LoopJob]] = {}
    for job in jobs:
        if isinstance(job, LoopJob):
            loops.setdefault(job.loop, []).append(job)
        else:
            assert isinstance(job, ThreadJob)
            job.done.set()
    for loop, theirs in loops.items():
        try:
            loop.call_soon_threadsafe(_deliver_here, theirs)
        except RuntimeError:
            heard = False
    return heard


def _deliver_here(jobs: list[LoopJob]) -> None:
    for job in jobs:
        if not job.done.done():
            job.done.set_result(None)
