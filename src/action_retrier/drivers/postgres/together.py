"""
A savepoint, one statement and the savepoint's release, in one exchange on a connection of the user's.

psycopg's own pipeline waits for the server five times where it has to be waited for once.
"""

import contextlib
import itertools
import weakref
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, Final

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from ..._statements import Rows, Statement
from ..handle import Control
from .connection import AnyConnection, numbered
from .wire import checked, rows_of, values_of

_SYNC: Final = int(ExecStatus.PIPELINE_SYNC)
_numbers = itertools.count(1)
Exchange = Generator[Wait, Ready | int, list[PGresult]]
"""What psycopg's connections wait for, in either colour."""


class _Known:
    """What has been sent on one connection: how often each statement, and under which name it is prepared."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.names: dict[str, bytes] = {}


_known: "weakref.WeakKeyDictionary[Any, _Known]" = weakref.WeakKeyDictionary()


class Batch:
    """
    Statements that are sent together.

    What is sent often is prepared, as often as the connection's user has it. If he discards that, the statement fails;
    the savepoint that is sent before it makes it possible to go on.
    """

    def __init__(
        self, connection: AnyConnection, statements: Sequence[Statement], schema: str, now_us: int | None
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._schema = schema
        self._now_us = now_us
        self._prepares: dict[str, bytes] = {}

    def _send(self, pgconn: PGconn, statement: Statement) -> None:
        if isinstance(statement, Control):
            pgconn.send_query_params(statement.name.encode(), None)
            return
        text, values = numbered(statement.name, self._schema), values_of(statement, self._schema, self._now_us)
        name = self._name_of(statement)
        if name is None:
            pgconn.send_query_params(text, values)
            return
        if statement.name in self._prepares:
            pgconn.send_prepare(name, text)
        pgconn.send_query_prepared(name, values)

    def _name_of(self, statement: Statement) -> bytes | None:
        """Return under which name a statement is prepared, or is to be; None if it is not."""
        threshold = self._connection.prepare_threshold
        if threshold is None or not isinstance(self._statements[0], Control):
            return None
        known = _known.setdefault(self._connection, _Known())
        known.times[statement.name] += 1
        if statement.name not in known.names and known.times[statement.name] > threshold:
            self._prepares[statement.name] = f"{self._schema}.{statement.name}.{next(_numbers)}".encode()
        return known.names.get(statement.name) or self._prepares.get(statement.name)

    def exchange(self) -> Exchange:
        """Send them and take in all answers; to be waited for as psycopg waits."""
        pgconn = self._connection.pgconn
        pgconn.enter_pipeline_mode()
        try:
            for statement in self._statements:
                self._send(pgconn, statement)
            pgconn.pipeline_sync()
            while pgconn.flush():
                if (yield Wait.RW) & Ready.R:
                    pgconn.consume_input()
            return (yield from _answers(pgconn))
        finally:
            with contextlib.suppress(psycopg.OperationalError):  # it is gone
                pgconn.exit_pipeline_mode()

    def rows_of(self, results: list[PGresult]) -> Rows:
        """Return the rows of all answers. Raises what the first of them that has failed tells."""
        pgconn = self._connection.pgconn
        for result in results:
            checked(pgconn, result)
        if self._prepares:
            _known[self._connection].names.update(self._prepares)
        return [row for result in results if result.nfields for row in rows_of(pgconn, result)]

    def after_discarding(self) -> "Batch":
        """Return what is to be sent instead where what was prepared has been discarded; the savepoint has been made."""
        _known.pop(self._connection, None)
        savepoint, *others = self._statements
        back = Control(savepoint.name.replace("SAVEPOINT", "ROLLBACK TO SAVEPOINT"))
        return Batch(self._connection, [back, *others], self._schema, self._now_us)


def _answers(pgconn: PGconn) -> Exchange:
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        while (note := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(note)
        result = pgconn.get_result()
        if result is None:  # the end of one statement
            if pgconn.status == ConnStatus.BAD:
                raise psycopg.OperationalError(pgconn.error_message.decode("utf-8", "replace"))
        elif result.status == _SYNC:
            return results
        else:
            results.append(result)
