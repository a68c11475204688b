"""The user's own connection to PostgreSQL, with whatever transaction it holds."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from ..._statements import Op, Rows, Statement
from ...errors import InvalidContext
from .. import Colour
from ..handle import Control, Handle, libraries
from .connection import AnyConnection, execute, execute_async, tell, tell_async, translated
from .deadlines import cut
from .urls import Target

_known: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


class Home(Protocol):
    """What a handle wants to know of the database that it should lead to."""

    @property
    def installation(self) -> str:
        """The id by which it is told from others; opens it."""


def find(
    handle: object, target: Target, home: Home, now_us: Callable[[], int | None], *, writes: bool
) -> "PostgresHandle | None":
    """Return what runs operations through *handle*; None if it is no connection to PostgreSQL."""
    if isinstance(handle, psycopg.AsyncConnection | psycopg.Connection):
        return PsycopgHandle(handle, target, home, now_us, writes=writes)
    if "asyncpg" in libraries(handle):
        from .asyncpg_handle import AsyncpgHandle, is_connection  # noqa: PLC0415 - the user has imported the library

        if is_connection(handle):
            return AsyncpgHandle(handle, target, home, now_us, writes=writes)
    return None


class PostgresHandle(Handle):
    """What handles of either client library have."""

    def __init__(self, target: Target, home: Home, now_us: Callable[[], int | None], *, writes: bool) -> None:
        super().__init__(writes=writes)
        self._target = target
        self._home = home
        self._now_us = now_us

    def open(self) -> None:
        """Open the database whose installation is compared with."""
        _ = self._home.installation

    async def open_async(self) -> None:
        """Open the database whose installation is compared with; the first time that takes connections."""
        if self.raw not in _known:
            await asyncio.to_thread(self.open)

    def translated(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the server says of itself into `DatabaseUnavailable`."""
        return translated(self._target)

    def begin(self) -> Op[None]:
        """Check once for each connection that it leads to our database: that does not change."""
        if _known.get(self.raw) == self._home.installation:
            return
        found = None
        if (yield Statement("select_table", {"name": f"{self._target.schema}.meta"}))[0]["is_there"]:
            found = (yield Statement("select_installation"))[0]["installation"]
        if found != self._home.installation:
            what = "in which this app has no tables" if found is None else "other than the app's"
            raise InvalidContext(
                problem=f"ctx is a connection to a database {what}",
                remedy=f"pass a connection to {self._target.location}",
            )
        _known[self.raw] = self._home.installation


class PsycopgHandle(PostgresHandle):
    """A connection of psycopg's, of either colour."""

    errors = (psycopg.Error,)

    def __init__(
        self,
        connection: AnyConnection,
        target: Target,
        home: Home,
        now_us: Callable[[], int | None],
        *,
        writes: bool,
    ) -> None:
        super().__init__(target, home, now_us, writes=writes)
        self._connection = connection
        colour: Colour = "async" if isinstance(connection, psycopg.AsyncConnection) else "sync"
        self.colours = frozenset({colour})
        self._check()

    def _check(self) -> None:
        connection, kind = self._connection, type(self._connection).__name__
        if connection.closed:
            raise InvalidContext(problem=f"ctx is a psycopg {kind} that is closed", remedy="pass one that is open")
        if connection.pgconn.pipeline_status != PipelineStatus.OFF:
            raise InvalidContext(
                problem=f"ctx is a psycopg {kind} in pipeline mode",
                remedy="make the call outside of the pipeline block",
            )
        match connection.info.transaction_status:
            case TransactionStatus.INERROR:
                raise InvalidContext(
                    problem=f"ctx is a psycopg {kind} whose transaction has failed", remedy="roll it back first"
                )
            case TransactionStatus.ACTIVE:
                raise InvalidContext(
                    problem=f"ctx is a psycopg {kind} that is busy with another statement",
                    remedy="await that one first; a connection runs one statement at a time",
                )
        if self._writes and connection.autocommit and not self.in_transaction:
            raise InvalidContext(
                problem=f"ctx is a psycopg {kind} in autocommit mode with no transaction open",
                remedy="open one first (connection.transaction()), or pass the app to have the call commit by itself",
            )

    @property
    def raw(self) -> AnyConnection:
        """The connection."""
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return self._connection.info.transaction_status == TransactionStatus.INTRANS

    @property
    def has_ended(self) -> bool:
        """Whether a transaction that was open on it is no more; one that has failed still is."""
        return self._connection.info.transaction_status == TransactionStatus.IDLE

    def cut(self) -> None:
        """Shut its socket down; the server rolls back."""
        cut(self._connection)

    def execute(self, statement: Statement) -> Rows:
        """Run one statement on a cursor of our own."""
        connection = self._connection
        assert isinstance(connection, psycopg.Connection)
        if isinstance(statement, Control):
            tell(connection, statement.name)
            return []
        return execute(connection, statement, self._target.schema, self._now_us())

    async def execute_async(self, statement: Statement) -> Rows:
        """Run one statement on a cursor of our own."""
        connection = self._connection
        assert isinstance(connection, psycopg.AsyncConnection)
        if isinstance(statement, Control):
            await tell_async(connection, statement.name)
            return []
        return await execute_async(connection, statement, self._target.schema, self._now_us())
