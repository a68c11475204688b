"""
The one writing connection of a process, behind one queue, in a thread of its own.

SQLite has one writer at a time. What waits here is written together by the next transaction
(group commit): load makes batches, and an idle system commits at once. User code that needs a
transaction borrows the connection in its turn.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..._clock import Clock
from ..._statements import drive
from ...config import logger
from ...errors import DatabaseUnavailable, RetrierError
from ..jobs import Job, Jobs, LoopJob, ThreadJob, deliver
from .connection import begin_immediate, connect, execute, explain, translated
from .file import DatabaseFile
from .locks import lock_file, used_lock_file
from .transaction import Guard, SqliteTransaction
from .users import Users

_CHECKPOINT_BYTES = 4 * 1024 * 1024  # size of the WAL from which its content is copied back
_CHECKPOINT_PAUSE_S = 0.25  # the file stays as large as it was, and a reader may pin its content: not at each commit
_CHECKPOINT_LOOK_S = 0.01
_TRUNCATE_BYTES = 64 * 1024 * 1024  # from which we insist on emptying it
_LONG_LOAN_S = 5.0


class Writer(Jobs):
    """Runs operations and loans, one after the other, on the writing connection."""

    def __init__(
        self,
        file: DatabaseFile,
        gate: Path,
        *,
        users: Users,
        clock: Clock,
        synchronous: str,
        committed: Callable[[], None],
    ) -> None:
        super().__init__("action-retrier-writer", str(file.path))
        self._file = file
        self._path = file.path
        self._wal = f"{file.path}-wal"
        self._gate = gate
        self._users = users
        users.on_fork(self.drop_connection)
        self._clock = clock
        self._synchronous = synchronous
        self._committed = committed
        self._connection: sqlite3.Connection | None = None
        self._guard: Guard | None = None
        self._checkpoint_at_s = 0.0
        self.start()

    @contextlib.asynccontextmanager
    async def borrow(self, patience_s: float) -> Any:
        """Borrow the connection with a transaction open: commit on exit, rollback on error."""
        job, ended = LoopJob(), LoopJob()
        try:
            loan: SqliteTransaction = await self.wait(job, patience_s)
            yield loan
        except BaseException:
            if job.result is not None and job.result.is_open:
                job.result.give_back("rollback", ended)
                await asyncio.shield(ended.done)
            raise
        if loan.is_open:
            loan.give_back("commit", ended)
            await asyncio.shield(ended.done)
            ended.outcome()

    @contextlib.contextmanager
    def borrow_sync(self, patience_s: float) -> Iterator[SqliteTransaction]:
        """Borrow the connection with a transaction open: commit on exit, rollback on error."""
        job, ended = ThreadJob(), ThreadJob()
        try:  # from here on: a signal's handler may raise anything, anywhere
            loan: SqliteTransaction = self.wait_sync(job, patience_s)
            yield loan
        except BaseException:
            if job.result is not None and job.result.is_open:
                job.result.give_back("rollback", ended)
                ended.done.wait()
            raise
        if loan.is_open:
            loan.give_back("commit", ended)
            ended.done.wait()
            ended.outcome()

    def _too_long(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            problem=f"{self._path}: it did not become this call's turn to write within the time it may wait",
            remedy="look for a transaction that stays open (an app.transaction() around slow work or around a call "
            "that was given the app instead of its ctx, a connection of your own, a stopped process)",
        )

    def drop_connection(self) -> None:
        """Close the connection, which nobody uses now; the next transaction opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._guard = None

    # The thread's side.

    def _work(self) -> None:
        with used_lock_file(self._gate):
            self._serve()
            self.drop_connection()

    def _do(self, jobs: list[Job]) -> None:
        if jobs[0].make is None:
            self._lend(jobs[0])
        else:
            self._write(jobs)

    @property
    def _is_ready(self) -> bool:
        return True

    def _do_here(self, job: Job) -> None:
        try:
            self._write([job], waits=False)
        except _SomebodyWrites:
            with self._lock:
                self._queue.appendleft(job)
        if job.error is not None:
            self._break_off(job)  # it may be a signal's handler that has raised that

    def _break_off(self, job: Job) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self.drop_connection()
        lock_file(self._gate).release(job)
        self._users.leave(job)

    def _write(self, jobs: list[Job], *, waits: bool = True) -> None:
        """
        Write operations in one transaction; if that fails, each in one of its own.

        Raises:
            _SomebodyWrites: One would have to wait, and must not.
        """
        try:
            with self._transaction(jobs[0], waits=waits) as connection:
                jobs = self.begin(jobs)
                for job in jobs:
                    self._run(job, connection, alone=len(jobs) == 1)
        except _SomebodyWrites:
            raise
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
        deliver(jobs)

    def _run(self, job: Job, connection: sqlite3.Connection, *, alone: bool) -> None:
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

    def _lend(self, job: Job) -> None:
        """Open a transaction, let user code have it, and end it as told."""
        loan: SqliteTransaction | None = None
        error: BaseException | None = None
        try:
            with self._transaction(job) as connection:
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
        if isinstance(ended, Job):
            ended.error = error
            deliver([ended])

    def _hand_over(self, job: Job, loan: SqliteTransaction) -> None:
        """Wait until the borrower is done. Raises `_RollBack` unless it wants to commit."""
        with self._lock:
            if job.unwanted:
                raise _RollBack
            job.began, job.result = True, loan
        if not deliver([job]):
            raise _RollBack  # its event loop was closed
        decision = loan.wait(_LONG_LOAN_S, _warn_of_loan)
        if decision == "abandon":
            self._expel()
        if decision != "commit":
            raise _RollBack

    @contextlib.contextmanager
    def _transaction(self, job: Job, *, waits: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction for *job*, and others perhaps, begun when it is our turn among the processes."""
        gate = lock_file(self._gate)
        try:
            if not gate.acquire(job, waits=waits):
                raise _SomebodyWrites
            with self._users.using(job):
                yield from self._transaction_in_turn(waits=waits)
        finally:
            gate.release(job)

    def _transaction_in_turn(self, *, waits: bool) -> Iterator[sqlite3.Connection]:
        with translated(self._path):
            connection = self._begin_transaction(waits=waits)
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

    def _begin_transaction(self, *, waits: bool) -> sqlite3.Connection:
        self._file.check()
        connection = self._connect()
        try:
            if not begin_immediate(connection, waits=waits):
                raise _SomebodyWrites
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY_SNAPSHOT:
                raise
            # User code keeps a cursor that it has read half-way, and with it this connection in the past.
            self._expel()
            connection = self._connect()
            begin_immediate(connection)
        return connection

    def _expel(self) -> None:
        """Leave the connection to user code that keeps hold of it, good for nothing; the next one is another."""
        assert self._guard is not None
        guard, self._connection, self._guard = self._guard, None, None
        guard.expel()

    def _check_still_open(self, connection: sqlite3.Connection) -> None:
        """An error such as a full disk makes SQLite roll back behind our back."""
        if not connection.in_transaction:
            raise DatabaseUnavailable(
                problem=f"{self._path}: SQLite rolled the transaction back",
                remedy="the disk may be full or failing; nothing was written",
            )

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = connect(self._path, writes=True, synchronous=self._synchronous)
            # We hold the gate: a transaction begins in a way of its own, and a checkpoint must not wait for readers.
            connection.execute("PRAGMA busy_timeout = 0").fetchall()
            self._guard = Guard(connection)
            self._connection = connection  # last: one without its guard would be used as it is
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
        self._checkpoint_at_s = now_s + _CHECKPOINT_LOOK_S
        try:
            size = os.stat(self._wal).st_size  # noqa: PTH116 - in half the time
        except OSError:
            return
        if size >= _CHECKPOINT_BYTES:
            self._checkpoint_at_s = now_s + _CHECKPOINT_PAUSE_S
            mode = "TRUNCATE" if size >= _TRUNCATE_BYTES else "PASSIVE"
            with contextlib.suppress(sqlite3.Error):  # a reader is in the way: the next one tries again
                connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()


class _SomebodyWrites(Exception):
    """It is another process's turn, or another program's."""


class _RollBack(Exception):
    """The borrower does not want its transaction."""


def _warn_of_loan() -> None:
    logger.warning("a transaction on SQLite has been open for long: nobody else can write meanwhile")
