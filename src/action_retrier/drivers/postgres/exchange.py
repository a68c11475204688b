"""An operation whose statements commit themselves, sent and heard by the event loop of whoever waits for it."""

import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from ..._statements import Op, Rows, Statement, drive
from ..jobs import LoopJob
from .connection import CALL_S, Connection
from .deadlines import deadlines
from .reading import Reading
from .wire import rows_of

_LATE_S = 0.1
"""What the loop has not taken in by then is taken in by a thread, if anybody waits for the connection."""


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
        self._is_open = False  # an answer is to be taken in, by the loop or by a thread
        self._result: PGresult | None = None
        self._error: BaseException | None = None
        self.late_at_s = time.monotonic() + _LATE_S
        self._until_s = time.monotonic() + CALL_S

    def begin(self, first: Statement) -> None:
        """Send the first statement. Raises NotImplementedError where the loop cannot wait for a socket."""
        self._reading = Reading(self._job.loop, self._connection, self._take_in)
        self._timer = self._job.loop.call_later(CALL_S, self.leave)
        self._go_on(first)

    def _go_on(self, statement: Statement) -> None:
        try:
            self._send(statement)
            is_sent = not self._connection.pgconn.flush()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that finishes it
            self._leave(error)
            return
        self._is_open = True  # only now: a thread must not wait for an answer while this one sends
        if not is_sent:
            self.leave()

    def leave(self) -> None:
        """Leave the rest to a thread, from any thread, unless the answer has been taken in."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
        self._leave()

    def _leave(self, error: BaseException | None = None) -> None:
        self._error = error
        self._reading.end_from_elsewhere()
        self._left()

    def _take_in(self) -> None:
        error: BaseException | None = None
        with self._lock:
            if not self._is_open:
                return
            try:
                self._is_open = not self._is_complete()
            except psycopg.Error as problem:
                self._is_open, error = False, problem
            if self._is_open:
                return
        if error is None:
            self._continue()
        else:
            self._leave(error)

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
            self._timer.cancel()
            self._job.result = stop.value
            self._ended()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that finishes it
            self._leave(error)
        else:
            self._go_on(statement)

    def _rows(self) -> Rows:
        result, self._result = self._result, None
        pgconn = self._connection.pgconn
        if result is None:
            raise psycopg.OperationalError(pgconn.error_message.decode("utf-8", "replace") or "no answer")
        return rows_of(pgconn, result)

    def _answer(self) -> Generator[Wait, Ready | int, None]:
        """Wait as psycopg waits: libpq's own wait for a result keeps all threads from going on."""
        pgconn = self._connection.pgconn
        while pgconn.flush():
            if (yield Wait.RW) & Ready.R:
                pgconn.consume_input()
        while not self._is_complete():
            yield Wait.R

    def finish(self, execute: Callable[[Statement], Rows]) -> Any:
        """Wait for the answer in a thread, do the rest with *execute*, and return what comes of the operation."""
        if self._error is not None:
            raise self._error
        with deadlines.within(max(self._until_s - time.monotonic(), _LATE_S), self._connection):
            self._connection.wait(self._answer())
        rows = self._rows()
        try:
            statement = self._op.send(rows)
        except StopIteration as stop:
            return stop.value
        return drive(self._op, execute, statement)
