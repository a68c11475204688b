"""An operation whose statements commit themselves, sent and heard by the event loop of whoever waits for it."""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq.abc import PGresult

from ..._statements import Op, Rows, Statement, drive
from ..jobs import LoopJob
from .connection import CALL_S, Connection
from .deadlines import Limit, deadlines
from .reading import Reading
from .wire import rows_of

_LATE_S = 0.1
"""An answer that the loop has not taken in by then is taken in by a thread: user code may be blocking the loop."""


class Exchange:
    """
    Sends statements from an event loop, and takes in their answers there: nobody has to change threads.

    Whatever goes wrong, and whatever takes long, is left to a thread, which waits as threads do. The loop may be
    blocked, or closed: others wait for the connection.
    """

    def __init__(
        self,
        job: LoopJob,
        op: Op[Any],
        connection: Connection,
        send: Callable[[Statement], None],
        *,
        ended: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        """
        Begin with nothing sent.

        Args:
            job: Whose operation *op* is.
            send: Sends a statement on *connection*.
            ended: Called, on the loop, when the operation has come to its end and the job has its result.
            left: Called, from any thread, when a thread has to `finish` it.
        """
        self._job = job
        self._op = op
        self._connection = connection
        self._send = send
        self._ended = ended
        self._left = left
        self._lock = threading.Lock()
        self._is_heard = False  # the answer has been taken in, or is the thread's to take in
        self._result: PGresult | None = None
        self._error: BaseException | None = None
        self._limit: Limit | None = None

    def begin(self, first: Statement) -> None:
        """Send the first statement. Raises NotImplementedError where the loop cannot wait for a socket."""
        self._reading = Reading(self._job.loop, self._connection, self._take_in)
        self._go_on(first)

    def _go_on(self, statement: Statement) -> None:
        self._is_heard = False
        try:
            self._send(statement)
            is_unsent = self._connection.pgconn.flush()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that finishes it
            self._leave(error)
            return
        if is_unsent:
            self._leave()
        else:
            self._limit = deadlines.limit(_LATE_S, self._leave)

    def _leave(self, error: BaseException | None = None) -> None:
        """Leave the rest to a thread, unless the answer has been heard."""
        with self._lock:
            if self._is_heard:
                return
            self._is_heard, self._error = True, error
        self._reading.end_from_elsewhere()
        self._left()

    def _take_in(self) -> None:
        with self._lock:
            if self._is_heard:
                return
            try:
                self._is_heard = self._is_complete()
            except psycopg.Error as problem:
                error: BaseException | None = problem
            else:
                error = None
        if error is not None:
            self._leave(error)
        elif self._is_heard:
            assert self._limit is not None
            self._limit.end()
            self._continue()

    def _is_complete(self) -> bool:
        """Take in what has come, and tell whether it is all of the answer."""
        pgconn = self._connection.pgconn
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                return True
            self._result = result
        return False

    def _continue(self) -> None:
        """Go on with the operation after an answer."""
        try:
            statement = self._op.send(self._rows())
        except StopIteration as stop:
            self._reading.end()
            self._job.result = stop.value
            self._ended()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that finishes it
            self._is_heard = False
            self._leave(error)
        else:
            self._go_on(statement)

    def _rows(self) -> Rows:
        result, self._result = self._result, None
        pgconn = self._connection.pgconn
        if result is None:
            raise psycopg.OperationalError(pgconn.error_message.decode("utf-8", "replace") or "no answer")
        return rows_of(pgconn, result)

    def finish(self, execute: Callable[[Statement], Rows]) -> Any:
        """Wait for the answer in a thread, do the rest with *execute*, and return what comes of the operation."""
        if self._error is not None:
            raise self._error
        pgconn = self._connection.pgconn
        with deadlines.within(CALL_S, self._connection):
            while (result := pgconn.get_result()) is not None:
                self._result = result
        rows = self._rows()
        try:
            statement = self._op.send(rows)
        except StopIteration as stop:
            return stop.value
        return drive(self._op, execute, statement)
