"""A connection of our own behind a queue, in a thread of its own; it reconnects for ever."""

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg

from ..._clock import Clock, SystemClock
from ..._statements import Rows, Statement, drive
from ...config import logger
from ...errors import DatabaseUnavailable
from ..jobs import Job, Jobs, deliver
from .connection import BEGIN, CALL_S, check_commit, connect, execute, is_transient, translated
from .deadlines import deadlines
from .urls import Target

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"  # one state for all statements of the operation
_SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


def told_now_us(clock: Clock) -> int | None:
    """Return the instant that statements are told; None leaves it to the database, as everywhere but in tests."""
    return None if isinstance(clock, SystemClock) else clock.now_us()


class Session(Jobs):
    """Runs operations, one after the other, each group in a transaction."""

    def __init__(self, name: str, target: Target, clock: Clock, *, writes: bool, committed: Callable[[], None]) -> None:
        super().__init__(name, target.location)
        self._target = target
        self._clock = clock
        self._begin = BEGIN if writes else _READ
        self._committed = committed
        self._connection: psycopg.Connection[Any] | None = None
        self._pause_s = _SHORTEST_PAUSE_S
        self._rng = random.Random()  # noqa: S311 - spreads reconnections
        self.start()

    def _work(self) -> None:
        self._serve()
        self._drop()

    def _too_long(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            problem=f"{self._location}: it did not become this call's turn within the time it may wait",
            remedy="check that the database can be reached, and its load",
        )

    def _do(self, jobs: list[Job]) -> None:
        try:
            with self._transaction() as connection:
                jobs = self.begin(jobs)
                for job in jobs:
                    assert job.make is not None
                    job.result = drive(job.make(), partial(self._execute, connection, told_now_us(self._clock)))
        except DatabaseUnavailable as error:
            self._again_later(jobs, error)
            return
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the job
            if is_transient(error) or len(jobs) > 1:
                for job in jobs:  # which of them it was does not matter: alone, none disturbs another
                    job.result = None
                    self._do([job])
                return
            jobs[0].error = error
        else:
            self._pause_s = _SHORTEST_PAUSE_S
            self._committed()
        deliver(jobs)

    def _execute(self, connection: psycopg.Connection[Any], now_us: int | None, statement: Statement) -> Rows:
        return execute(connection, statement, self._target.schema, now_us)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._target)
        connection = self._connection
        try:
            with translated(self._target), deadlines.within(CALL_S, connection):
                connection.execute(self._begin)
                yield connection
                check_commit(connection.execute("COMMIT"), self._target)
        except DatabaseUnavailable:
            self._drop()
            raise
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            raise

    def _again_later(self, jobs: list[Job], error: DatabaseUnavailable) -> None:
        """Put jobs back to the head of the queue, where their patience may end, and wait before the next try."""
        pause_s = self._pause_s * (0.5 + self._rng.random())
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        logger.warning("%s; trying again in %.1f s", error.problem, pause_s)
        with self._changed:
            if self._stopping:
                for job in jobs:
                    job.error = error
                deliver(jobs)
                return
            for job in reversed(jobs):
                job.began, job.result = False, None
                self._queue.appendleft(job)
            self._changed.wait_for(lambda: self._stopping, pause_s)

    def _drop(self) -> None:
        """Give the connection up: after an error of its own it is not to be trusted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()
