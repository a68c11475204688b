"""The user's own psycopg connection, with whatever transaction it holds."""

import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ..._statements import Op, Rows, Statement, adrive, drive
from ...errors import InvalidContext
from .. import Colour
from .connection import AnyConnection, execute, execute_async, translated
from .urls import Target

T = TypeVar("T")

_SAVEPOINT = "action_retrier_call"
_known: "weakref.WeakKeyDictionary[AnyConnection, str]" = weakref.WeakKeyDictionary()


def find(
    handle: object, target: Target, installation: str, now_us: Callable[[], int | None], *, writes: bool
) -> "ConnectionHandle | None":
    """Return what runs operations through *handle*; None if it is no connection of psycopg's."""
    if isinstance(handle, psycopg.AsyncConnection | psycopg.Connection):
        return ConnectionHandle(handle, target, installation, now_us, writes=writes)
    return None


class ConnectionHandle:
    """Runs operations on a connection of the user's; it commits, or does not, when the user does."""

    def __init__(
        self,
        connection: AnyConnection,
        target: Target,
        installation: str,
        now_us: Callable[[], int | None],
        *,
        writes: bool,
    ) -> None:
        self._connection = connection
        self._target = target
        self._installation = installation
        self._now_us = now_us
        self._writes = writes
        self.colour: Colour = "async" if isinstance(connection, psycopg.AsyncConnection) else "sync"
        self._check()

    def _check(self) -> None:
        connection, kind = self._connection, type(self._connection).__name__
        if connection.closed:
            raise InvalidContext(problem=f"ctx is a psycopg {kind} that is closed", remedy="pass one that is open")
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
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return self._connection.info.transaction_status == TransactionStatus.INTRANS

    async def run(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        connection = self._connection
        assert isinstance(connection, psycopg.AsyncConnection)

        async def run(statement: Statement) -> Rows:
            return await execute_async(connection, statement, self._target.schema, self._now_us())

        with translated(self._target):
            async with self._savepoint():
                if not self._is_known:
                    await adrive(self._identify(), run)
                return await adrive(op, run)

    def run_sync(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        connection = self._connection
        assert isinstance(connection, psycopg.Connection)

        def run(statement: Statement) -> Rows:
            return execute(connection, statement, self._target.schema, self._now_us())

        with translated(self._target), self._savepoint_sync():
            if not self._is_known:
                drive(self._identify(), run)
            return drive(op, run)

    @property
    def _is_known(self) -> bool:
        """Whether this connection has been seen to lead to our database: that does not change."""
        return _known.get(self._connection) == self._installation

    def _identify(self) -> Op[None]:
        found = None
        if (yield Statement("select_table", {"name": f"{self._target.schema}.meta"}))[0]["is_there"]:
            found = (yield Statement("select_installation"))[0]["installation"]
        if found != self._installation:
            what = "in which this app has no tables" if found is None else "other than the app's"
            raise InvalidContext(
                problem=f"ctx is a connection to a database {what}",
                remedy=f"pass a connection to {self._target.location}",
            )
        _known[self._connection] = self._installation

    @contextlib.asynccontextmanager
    async def _savepoint(self) -> AsyncIterator[None]:
        connection = self._connection
        assert isinstance(connection, psycopg.AsyncConnection)
        if not self._writes:
            yield
            return
        await connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            yield
        except BaseException:
            if not connection.closed:
                await connection.execute(f"ROLLBACK TO {_SAVEPOINT}; RELEASE {_SAVEPOINT}")
            raise
        await connection.execute(f"RELEASE {_SAVEPOINT}")

    @contextlib.contextmanager
    def _savepoint_sync(self) -> Iterator[None]:
        connection = self._connection
        assert isinstance(connection, psycopg.Connection)
        if not self._writes:
            yield
            return
        connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            yield
        except BaseException:
            if not connection.closed:
                connection.execute(f"ROLLBACK TO {_SAVEPOINT}; RELEASE {_SAVEPOINT}")
            raise
        connection.execute(f"RELEASE {_SAVEPOINT}")
