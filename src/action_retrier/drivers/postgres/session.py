"""A connection of our own behind a queue, in a thread of its own; it reconnects for ever."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from ..._clock import Clock, SystemClock
from ..._statements import Op, Rows, Statement, drive
from ...config import logger
from ...errors import DatabaseUnavailable
from ..jobs import Job, Jobs, LoopJob, deliver
from .commits import BEGIN_READING, PATIENCE_S, begin, commit, resolve
from .connection import (
    CALL_S,
    ISOLATED,
    LONGEST_PAUSE_S,
    SHORTEST_PAUSE_S,
    Connection,
    connect,
    explain,
    is_transient,
    may_pass,
    tell,
)
from .deadlines import deadlines
from .doubt import CommitInDoubt, Mark
from .exchange import Exchange
from .urls import Target
from .wire import ask, execute, send_prepared

_TOLD_EACH_S = 30.0
"""How often the log says that an outage lasts: its first line and its last are what matters."""
# Planning a claim anew took the server three quarters of its time. The plans do not depend on the values: each
# statement names the index that it walks by its conditions, however the rows are distributed.
# They must not depend on how large a table was when they were made, either: a claim that reads all of it, which is
# right for a young one, goes on doing so until somebody analyzes the table. Nor is anything worth to be compiled.
_PLANNING = (
    "SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off;"
    " SET enable_hashjoin = off; SET enable_mergejoin = off"
)


def told_now_us(clock: Clock) -> int | None:
    """Return the instant that statements are told; None leaves it to the database, as everywhere but in tests."""
    return None if isinstance(clock, SystemClock) else clock.now_us()


class Session(Jobs):
    """Runs operations, one after the other, each group in a transaction."""

    def __init__(
        self,
        name: str,
        target: Target,
        clock: Clock,
        *,
        writes: bool,
        marked: bool = False,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Begin closed; it connects when there is something to do.

        Args:
            writes: False for one whose transactions are read-only.
            marked: The server can tell what became of a transaction.
            committed: Called after each commit.
        """
        super().__init__(name, target.location)
        self._target = target
        self._clock = clock
        self._writes = writes
        self._marked = marked
        self._committed = committed
        self._connection: Connection | None = None
        self._pause_s = SHORTEST_PAUSE_S
        self._fails_since_s: float | None = None
        self._told_s = 0.0
        self._rng = random.Random()  # noqa: S311 - spreads reconnections
        self.start()

    async def run(self, make: Callable[[], Op[Any]], patience_s: float | None) -> Any:
        """Run an operation; what commits itself on the caller's event loop, if nobody is at it."""
        job = LoopJob(make)
        try:
            if self._connection is not None and self._take_turn(job):
                self._send(job, self._connection)
            else:
                self._put(job)
        except BaseException:
            self._pass_turn(job)
            raise
        return await self._outcome_on_loop(job, patience_s)

    def _send(self, job: LoopJob, connection: Connection | None) -> None:
        """Send what commits itself from this loop; leave all else to the thread."""
        op, first = self._open(job)
        if first is None or connection is None or not self._may_commit_itself(job, first):
            self._leave_to_thread(partial(self._do, [job]))
            return
        now_us = told_now_us(self._clock)

        def send(statement: Statement) -> None:
            send_prepared(connection, statement, self._target.schema, now_us)

        def ended() -> None:
            self._on_loop = None
            self._pass_turn(job)
            self._note_success()
            self._committed()
            if not job.done.done():
                job.done.set_result(None)

        def left() -> None:
            self._on_loop = None
            self._leave_to_thread(partial(self._do, [job], partial(self._finish, exchange)))

        exchange = Exchange(job, op, connection, send, ended=ended, left=left)
        job.began = True
        self._on_loop = exchange
        try:
            exchange.begin(first)
            job.opened = None
        except NotImplementedError:  # a loop of Windows
            self._on_loop = None
            self._leave_to_thread(partial(self._do, [job]))

    def _finish(self, exchange: Exchange, jobs: list[Job]) -> list[Job]:
        """Go on in this thread with what an event loop has left."""
        connection = self._connection
        assert connection is not None
        with self._explained(), self._in_doubt_if_lost(connection):
            jobs[0].result = exchange.finish(partial(self._execute, connection, told_now_us(self._clock)))
        return jobs

    @property
    def _is_ready(self) -> bool:
        return self._connection is not None

    def _do_here(self, job: Job) -> None:
        self._do([job])

    def _break_off(self, job: Job) -> None:  # noqa: ARG002 - all there is of it is on the connection
        self._drop()

    def _work(self) -> None:
        self._serve()
        self._drop()

    def _too_long(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            problem=f"{self._location}: it did not become this call's turn within the time it may wait",
            remedy="check that the database can be reached, and its load",
        )

    def _do(self, jobs: list[Job], run: Callable[[list[Job]], list[Job]] | None = None) -> None:
        try:
            jobs = (run or self._run)(jobs)
        except CommitInDoubt as doubt:
            self._drop()
            self._resolve(jobs, doubt)
        except DatabaseUnavailable as error:
            self._drop()
            self._again_later(jobs, error, hopeful=may_pass(error))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the job
            self._go_back()
            if len(jobs) == 1 and not is_transient(error):
                self._end(jobs, error)
                return
            for job in jobs:  # which of them it was does not matter: alone, none disturbs another
                job.result = None
                self._do([job])
        else:
            self._succeed(jobs)

    def _run(self, jobs: list[Job]) -> list[Job]:
        """Run jobs in one transaction; return those that were still wanted when it began."""
        with self._explained():
            connection = self._connected()
            lone = len(jobs) == 1 and self._may_commit_itself(jobs[0], self._open(jobs[0])[1])
            mark = None if lone else self._begin(connection)
            jobs[:] = self.begin(jobs)
            execute_here = partial(self._execute, connection, told_now_us(self._clock))
            with self._in_doubt_if_lost(connection) if lone else contextlib.nullcontext():
                for job in jobs:
                    (op, first), job.opened = self._open(job), None
                    job.result = drive(op, execute_here, first)
            if not lone:
                with deadlines.within(CALL_S, connection):
                    if self._writes and any(job.in_doubt for job in jobs):
                        # It finds perhaps that it has been done, and writes nothing: its COMMIT would not wait for
                        # the standby that the one before was to wait for.
                        execute(connection, Statement("touch_meta"), self._target.schema, None)
                    commit(connection, self._target, mark)
        return jobs

    @staticmethod
    def _open(job: Job) -> tuple[Op[Any], Statement | None]:
        """Return the operation of a job that has not begun, and its first statement."""
        if job.opened is None:
            assert job.make is not None
            op = job.make()
            first = next(op, None)
            job.opened = (job.make() if first is None else op), first  # what sends nothing has ended with that
        return job.opened

    def _may_commit_itself(self, job: Job, first: Statement | None) -> bool:
        """
        Tell whether an operation needs no BEGIN and COMMIT, which spares two exchanges of three.

        Behind a pooler the role's default isolation would count. What may have been done before is done with more care.
        """
        return first is not None and first.stands_alone and self._target.direct and not job.in_doubt

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the server says of itself, not of a statement, into `DatabaseUnavailable`."""
        try:
            yield
        except psycopg.Error as error:
            ours = None if self._is_our_own_refusal(error) else explain(error, self._target)
            if ours is None:
                raise
            raise ours from error

    @contextlib.contextmanager
    def _in_doubt_if_lost(self, connection: Connection) -> Iterator[None]:
        """Say of a statement that commits itself that nobody knows whether it has, if that is so."""
        try:
            yield
        except psycopg.Error as error:
            if self._writes and connection.closed:
                raise CommitInDoubt(self._target, None) from error
            raise

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._target)
            if self._target.direct:  # elsewhere nothing is prepared
                with deadlines.within(CALL_S, self._connection):
                    try:
                        tell(self._connection, f"{ISOLATED}; {_PLANNING}")
                    except psycopg.errors.UndefinedObject:  # something like PostgreSQL, which knows no such setting
                        tell(self._connection, ISOLATED)
        return self._connection

    def _begin(self, connection: Connection) -> Mark | None:
        with deadlines.within(CALL_S, connection):
            if self._writes:
                return begin(connection, "read committed", marked=self._marked)
            ask(connection, BEGIN_READING)
            return None

    def _is_our_own_refusal(self, error: psycopg.Error) -> bool:
        """Tell whether a write came to where only reads belong: that says nothing of the server."""
        return not self._writes and isinstance(error, psycopg.errors.ReadOnlySqlTransaction)

    def _execute(self, connection: Connection, now_us: int | None, statement: Statement) -> Rows:
        with deadlines.within(CALL_S, connection):
            return execute(connection, statement, self._target.schema, now_us)

    def _succeed(self, jobs: list[Job]) -> None:
        self._note_success()
        if jobs:
            self._committed()
        deliver(jobs)

    def _note_success(self) -> None:
        self._pause_s = SHORTEST_PAUSE_S
        if self._fails_since_s is not None:
            lasted_s = time.monotonic() - self._fails_since_s
            logger.info("%s answers again, after %.1f s", self._location, lasted_s)
            self._fails_since_s = None

    @staticmethod
    def _end(jobs: list[Job], error: BaseException) -> None:
        for job in jobs:
            job.error = error
        deliver(jobs)

    def _resolve(self, jobs: list[Job], doubt: CommitInDoubt) -> None:
        """Learn whether a COMMIT happened that got no answer; if not, or nobody knows, do the jobs again."""
        resolve(doubt)
        if doubt.fate == "committed":
            self._succeed(jobs)
        else:
            # Every operation that comes this way may be done twice: it has its fence, or its id.
            for job in jobs:
                job.in_doubt = True
            self._again_later(jobs, doubt.unresolved(), hopeful=True)

    def _again_later(self, jobs: list[Job], error: DatabaseUnavailable, *, hopeful: bool) -> None:
        """Put jobs back to the head of the queue, where their patience may end, and wait before the next try."""
        now_s = time.monotonic()
        with self._lock:
            again = []
            for job in jobs:
                job.result = None
                job.tried_since_s = job.tried_since_s or now_s
                if hopeful and not self._stopping and now_s - job.tried_since_s < PATIENCE_S:
                    job.began = False
                    again.append(job)
            self._queue.extendleft(reversed(again))
        self._end([job for job in jobs if job not in again], error)
        if again:
            if self._fails_since_s is None or now_s - self._told_s >= _TOLD_EACH_S:
                logger.warning("%s; trying again", error.problem)
                self._told_s = now_s
            self._fails_since_s = self._fails_since_s or now_s
            self._pause()

    def _pause(self) -> None:
        pause_s = self._pause_s * (0.5 + self._rng.random())
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        with self._lock:
            self._changed.wait_for(lambda: self._stopping, pause_s)

    def _go_back(self) -> None:
        if self._connection is not None and self._connection.info.transaction_status != TransactionStatus.IDLE:
            try:
                with deadlines.within(CALL_S, self._connection):
                    self._connection.execute("ROLLBACK")
            except psycopg.Error:
                self._drop()

    def _drop(self) -> None:
        """Give the connection up: after an error of its own it is not to be trusted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()
