"""The user's own ``aiosqlite.Connection``."""

import contextlib
import sqlite3
from functools import partial
from typing import Any

import aiosqlite

from ..._clock import Clock
from ..._statements import Rows, Statement
from ...errors import InvalidContext
from .. import Colour
from ..handle import Control
from .connection import execute
from .handle import Home, SqliteHandle, how_it_begins


def is_connection(handle: object) -> bool:
    """Tell whether *handle* is a connection."""
    return isinstance(handle, aiosqlite.Connection)


class AiosqliteHandle(SqliteHandle):
    """A connection whose calls run in a thread of aiosqlite's own."""

    colours: frozenset[Colour] = frozenset({"async"})
    kind = "an aiosqlite.Connection"

    def __init__(self, connection: Any, home: Home, clock: Clock, *, writes: bool) -> None:
        super().__init__(home, clock, writes=writes)
        self._connection = connection
        if self._is_closed:
            raise InvalidContext(
                problem=f"ctx is {self.kind} that is closed, or was not awaited", remedy="pass one that is open"
            )

    @property
    def raw(self) -> Any:
        """The connection."""
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return bool(self._connection.in_transaction)

    @property
    def has_ended(self) -> bool:
        """Whether a transaction that was open on it is no more; a connection that was closed says nothing of that."""
        return not self._is_closed and not self.in_transaction

    @property
    def _is_closed(self) -> bool:
        # SQLAlchemy closes the connection under a call that is canceled.
        return self._connection._connection is None  # noqa: SLF001 - no public member tells without raising

    @property
    def begins(self) -> str:
        """How transactions are begun; the attribute of Python 3.12 shows only on the connection that it wraps."""
        return how_it_begins(self._connection._conn)  # noqa: SLF001

    def cut(self) -> None:
        """Have its thread stop what it does; the transaction ends with the connection, which its owner closes."""
        interrupting = self._connection.interrupt()  # a coroutine that does not wait for anything
        with contextlib.suppress(StopIteration, ValueError, sqlite3.Error):
            interrupting.send(None)
        interrupting.close()

    async def execute_async(self, statement: Statement) -> Rows:
        """Run one statement on a cursor of our own, whatever row or text factory the connection has."""
        if self._is_closed:
            raise sqlite3.ProgrammingError("the connection was closed")
        if isinstance(statement, Control):
            await self._connection.execute(statement.name)
            return []
        # In its thread as a whole: its own calls would change threads for each row.
        wrapped = self._connection._conn  # noqa: SLF001
        run = partial(execute, wrapped, statement, self._clock.now_us(), installation=self._expected)
        rows: Rows = await self._connection._execute(run)  # noqa: SLF001
        return rows
