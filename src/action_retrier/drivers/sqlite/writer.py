"""
The one writing connection of a process, behind one queue, in a thread of its own.

SQLite has one writer at a time. What waits here is written together by the next transaction
(group commit): load makes batches, and an idle system commits at once. User code that needs a
transaction borrows the connection in its turn.
"""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..._clock import Clock
from ..._statements import Op, drive
from ...config import logger
from ...errors import DatabaseUnavailable, RetrierError
from .connection import begin_immediate, connect, execute, explain, translated
from .locks import lock_file, used_lock_file
from .transaction import Guard, SqliteTransaction

_GROUP = 200  # operations in one transaction at most: users of other processes wait for it
_CHECKPOINT_BYTES = 4 * 1024 * 1024  # size of the WAL from which its content is copied back
_CHECKPOINT_PAUSE_S = 0.25  # the file stays as large as it was, and a reader may pin its content: not at each commit
_TRUNCATE_BYTES = 64 * 1024 * 1024  # from which we insist on emptying it
_LONG_LOAN_S = 5.0


class _Job:
    """Something that waits for its turn, and what came of it. Without *make* it is a loan."""

    def __init__(self, make: Callable[[], Op[Any]] | None = None) -> None:
        self.make = make
        self.began = False
        self.unwanted = False
        self.result: Any = None
        self.error: BaseException | None = None

    def outcome(self) -> Any:
        """Return or raise what came of it."""
        if self.error is not None:
            raise self.error
        return self.result


class _ThreadJob(_Job):
    """A job that a thread waits for."""

    def __init__(self, make: Callable[[], Op[Any]] | None = None) -> None:
        super().__init__(make)
        self.done = threading.Event()


class _LoopJob(_Job):
    """A job that a coroutine waits for."""

    def __init__(self, make: Callable[[], Op[Any]] | None = None) -> None:
        super().__init__(make)
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()


class Writer:
    """Runs operations and loans, one after the other, on the writing connection."""

    def __init__(
        self, path: Path, gate: Path, *, clock: Clock, synchronous: str, committed: Callable[[], None]
    ) -> None:
        self._path = path
        self._gate = gate
        self._clock = clock
        self._synchronous = synchronous
        self._committed = committed
        self._connection: sqlite3.Connection | None = None
        self._guard: Guard | None = None
        self._checkpoint_at_s = 0.0
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="action-retrier-writer", daemon=True)
        self._thread.start()

    # The callers' side.

    async def run(self, make: Callable[[], Op[Any]], patience_s: float | None) -> Any:
        """Run an operation and return what came of it."""
        return await self._wait(_LoopJob(make), patience_s)

    def run_sync(self, make: Callable[[], Op[Any]], patience_s: float | None) -> Any:
        """Run an operation and return what came of it."""
        return self._wait_sync(_ThreadJob(make), patience_s)

    @contextlib.asynccontextmanager
    async def borrow(self, patience_s: float) -> Any:
        """Borrow the connection with a transaction open: commit on exit, rollback on error."""
        loan: SqliteTransaction = await self._wait(_LoopJob(), patience_s)
        ended = _LoopJob()
        try:
            yield loan
        except BaseException:
            if loan.is_open:
                loan.give_back("rollback", ended)
                await asyncio.shield(ended.done)
            raise
        if loan.is_open:
            loan.give_back("commit", ended)
            await asyncio.shield(ended.done)
            ended.outcome()

    @contextlib.contextmanager
    def borrow_sync(self, patience_s: float) -> Iterator[SqliteTransaction]:
        """Borrow the connection with a transaction open: commit on exit, rollback on error."""
        loan: SqliteTransaction = self._wait_sync(_ThreadJob(), patience_s)
        ended = _ThreadJob()
        try:
            yield loan
        except BaseException:
            if loan.is_open:
                loan.give_back("rollback", ended)
                ended.done.wait()
            raise
        if loan.is_open:
            loan.give_back("commit", ended)
            ended.done.wait()
            ended.outcome()

    def close(self) -> None:
        """Finish what is queued and let go of the connection."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _wait(self, job: _LoopJob, patience_s: float | None) -> Any:
        self._put(job)
        timer = None
        if patience_s is not None:
            timer = job.loop.call_later(patience_s, self._give_up, job)
        try:
            await job.done
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return job.outcome()

    def _wait_sync(self, job: _ThreadJob, patience_s: float | None) -> Any:
        self._put(job)
        try:
            if not job.done.wait(patience_s) and self._refuse(job):
                raise self._too_long()
            job.done.wait()
        except KeyboardInterrupt:
            self._withdraw(job)
            raise
        return job.outcome()

    def _give_up(self, job: _LoopJob) -> None:
        if not job.done.done() and self._refuse(job):
            job.done.set_exception(self._too_long())

    def _put(self, job: _Job) -> None:
        with self._changed:
            if self._stopping:
                raise DatabaseUnavailable(problem=f"{self._path} has been closed", remedy="open the App again")
            self._queue.append(job)
            self._changed.notify()

    def _refuse(self, job: _Job) -> bool:
        """Take back a job that has waited for too long. False: its turn has come after all."""
        with self._changed:
            if not job.began:
                self._queue.remove(job)
                return True
            # A loan may still be waiting for other processes; one that is handed over belongs to its borrower.
            job.unwanted = job.make is None and job.result is None
            return job.unwanted

    def _withdraw(self, job: _Job) -> None:
        """Take back a job that nobody waits for any more. A loan ends as soon as it is handed over."""
        with self._changed:
            if not job.began:
                with contextlib.suppress(ValueError):
                    self._queue.remove(job)
                return
            job.unwanted = True
            loan = job.result
        if isinstance(loan, SqliteTransaction):
            loan.give_back("rollback")

    def _too_long(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            problem=f"{self._path}: it did not become this call's turn to write within the time it may wait",
            remedy="look for a transaction that stays open (an app.transaction() around slow work or around a call "
            "that was given the app instead of its ctx, a connection of your own, a stopped process)",
        )

    # The thread's side.

    def _work(self) -> None:
        with used_lock_file(self._gate):
            self._serve()
            if self._connection is not None:
                self._connection.close()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if not self._queue:
                    return
                jobs = self._take()
            if jobs[0].make is None:
                self._lend(jobs[0])
            else:
                self._write(jobs)

    def _take(self) -> list[_Job]:
        """Take a loan, or the operations up to the next one."""
        jobs = [self._queue.popleft()]
        while jobs[0].make is not None and self._queue and self._queue[0].make is not None and len(jobs) < _GROUP:
            jobs.append(self._queue.popleft())
        for job in jobs:
            job.began = True
        return jobs

    def _write(self, jobs: list[_Job]) -> None:
        """Write operations in one transaction; if that fails, each in one of its own."""
        try:
            with self._transaction() as connection:
                for job in jobs:
                    self._run(job, connection, alone=len(jobs) == 1)
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the job
            if len(jobs) > 1 and not isinstance(error, DatabaseUnavailable):
                for job in jobs:
                    job.result = job.error = None
                    self._write([job])
                return
            for job in jobs:
                job.error = error
        else:
            self._committed()
        _deliver(jobs)

    def _run(self, job: _Job, connection: sqlite3.Connection, *, alone: bool) -> None:
        """Run one operation of a group; what it raises by itself undoes nothing but itself."""
        assert job.make is not None
        now = self._clock.now_us()
        if alone:
            job.result = drive(job.make(), lambda statement: execute(connection, statement, now))
            return
        connection.execute("SAVEPOINT action_retrier_job")
        try:
            job.result = drive(job.make(), lambda statement: execute(connection, statement, now))
        except RetrierError as error:
            job.error = error
            connection.execute("ROLLBACK TO action_retrier_job")
        connection.execute("RELEASE action_retrier_job")

    def _lend(self, job: _Job) -> None:
        """Open a transaction, let user code have it, and end it as told."""
        loan: SqliteTransaction | None = None
        error: BaseException | None = None
        try:
            with self._transaction() as connection:
                assert self._guard is not None
                loan = SqliteTransaction(connection, self._guard, self._path, self._clock)
                self._hand_over(job, loan)
        except _RollBack:
            pass
        except BaseException as problem:  # noqa: BLE001 - it belongs to the borrower
            error = problem
        else:
            self._committed()
        ended = job if loan is None else loan.ended
        if isinstance(ended, _Job):
            ended.error = error
            _deliver([ended])

    def _hand_over(self, job: _Job, loan: SqliteTransaction) -> None:
        """Wait until the borrower is done. Raises `_RollBack` unless it wants to commit."""
        with self._changed:
            if job.unwanted:
                raise _RollBack
            job.result = loan
        _deliver([job])
        decision = loan.wait(_LONG_LOAN_S, _warn_of_loan)
        if decision == "abandon":
            assert self._guard is not None
            guard, self._connection, self._guard = self._guard, None, None
            guard.expel()
        if decision != "commit":
            raise _RollBack

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, begun when it is our turn among the processes."""
        gate = lock_file(self._gate)
        gate.acquire()
        try:
            with translated(self._path):
                connection = self._connect()
                begin_immediate(connection)
            try:
                yield connection
                self._check_still_open(connection)
                connection.commit()
            except BaseException as error:
                self._roll_back(connection)
                if isinstance(error, sqlite3.Error) and (ours := explain(error, self._path)) is not None:
                    raise ours from error
                raise
            self._checkpoint(connection)
        finally:
            gate.release()

    def _check_still_open(self, connection: sqlite3.Connection) -> None:
        """An error such as a full disk makes SQLite roll back behind our back."""
        if not connection.in_transaction:
            raise DatabaseUnavailable(
                problem=f"{self._path}: SQLite rolled the transaction back",
                remedy="the disk may be full or failing; nothing was written",
            )

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self._path, writes=True, synchronous=self._synchronous)
            # We hold the gate: a transaction begins in a way of its own, and a checkpoint must not wait for readers.
            self._connection.execute("PRAGMA busy_timeout = 0").fetchall()
            self._guard = Guard(self._connection)
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        """Leave no transaction open; a connection that cannot even do that is replaced."""
        if connection is not self._connection:
            return  # abandoned: it has been rolled back
        try:
            if connection.in_transaction:
                connection.rollback()
        except sqlite3.Error:
            self._connection = self._guard = None
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Copy the WAL back when it has grown; we hold the gate, so no process of ours is in the way."""
        now_s = time.monotonic()
        if now_s < self._checkpoint_at_s:
            return
        try:
            size = self._path.with_name(self._path.name + "-wal").stat().st_size
        except OSError:
            return
        if size >= _CHECKPOINT_BYTES:
            self._checkpoint_at_s = now_s + _CHECKPOINT_PAUSE_S
            mode = "TRUNCATE" if size >= _TRUNCATE_BYTES else "PASSIVE"
            with contextlib.suppress(sqlite3.Error):  # a reader is in the way: the next one tries again
                connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()


class _RollBack(Exception):
    """The borrower does not want its transaction."""


def _warn_of_loan() -> None:
    logger.warning("a transaction on SQLite has been open for long: nobody else can write meanwhile")


def _deliver(jobs: list[_Job]) -> None:
    """Wake whoever waits for the jobs, each event loop once."""
    loops: dict[asyncio.AbstractEventLoop, list[_LoopJob]] = {}
    for job in jobs:
        if isinstance(job, _LoopJob):
            loops.setdefault(job.loop, []).append(job)
        elif isinstance(job, _ThreadJob):
            job.done.set()
    for loop, theirs in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_deliver_here, theirs)


def _deliver_here(jobs: list[_LoopJob]) -> None:
    for job in jobs:
        if not job.done.done():
            job.done.set_result(None)
