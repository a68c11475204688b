"""The user's own session or connection of SQLAlchemy's: what it holds is a connection of a driver's."""

import sys
import weakref
from typing import Any, TypeVar

from sqlalchemy import Connection, exc
from sqlalchemy.orm import Session, scoped_session

from ..._statements import Op
from ...errors import InvalidContext
from .. import Colour
from ..handle import FindRaw, Handle
from ..sqlite.handle import SqliteHandle

T = TypeVar("T")

_RECIPE = "https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#sqlite-enabling-transactions"
_begun: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""SQLAlchemy's transactions on SQLite that really began, with a BEGIN of ours or of SQLAlchemy's."""


def find_handle(handle: object, find_raw: FindRaw, *, writes: bool) -> "SqlalchemyHandle | None":
    """Return what runs operations through *handle*; None if it is no session or connection."""
    # Importing it takes greenlet, which blocking programs need not have: what is of it comes from who has done so.
    asynchronous: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if isinstance(handle, scoped_session) or (asynchronous and isinstance(handle, asynchronous.async_scoped_session)):
        handle = handle()
    if isinstance(handle, Session | Connection):
        return SqlalchemyHandle(handle, handle, "sync", find_raw, writes=writes)
    if asynchronous and isinstance(handle, asynchronous.AsyncSession):
        return SqlalchemyHandle(handle, handle.sync_session, "async", find_raw, writes=writes)
    if asynchronous and isinstance(handle, asynchronous.AsyncConnection):
        return SqlalchemyHandle(handle, handle.sync_connection, "async", find_raw, writes=writes)
    return None


class SqlalchemyHandle:
    """Begins what SQLAlchemy would begin, and runs operations on the driver's connection under it."""

    def __init__(
        self, given: Any, sync: "Session | Connection | None", colour: Colour, find_raw: FindRaw, *, writes: bool
    ) -> None:
        self.colours = frozenset({colour})
        self._given = given
        self._kind = f"a SQLAlchemy {type(given).__name__}"
        self._find_raw = find_raw
        self._writes = writes
        if sync is None:
            raise self._invalid("that has not been started", "await it, or enter it with async with, first")
        self._sync = sync
        self._root: Any = None
        self._check()

    def _invalid(self, what: str, remedy: str) -> InvalidContext:
        return InvalidContext(problem=f"ctx is {self._kind} {what}", remedy=remedy)

    def _check(self) -> None:
        if isinstance(self._sync, Session):
            if not self._sync.is_active:
                raise self._invalid("whose transaction has failed", "roll it back first")
            return
        if self._sync.closed:
            raise self._invalid("that is closed", "pass one that is open")
        if self._sync.invalidated:
            raise self._invalid("that was invalidated, and its transaction with it", "roll it back, and begin again")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return bool(self._sync.in_transaction())

    async def run(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        raw = await self._given.run_sync(self.unwrap)
        result: T = await raw.run(op)
        self._remember(raw)
        return result

    def run_sync(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        raw = self.unwrap(self._sync)
        result: T = raw.run_sync(op)
        self._remember(raw)
        return result

    def unwrap(self, handle: "Session | Connection") -> Handle:
        """Begin the transaction that holds what follows, and return what runs on the driver's connection."""
        try:
            connection = handle.connection() if isinstance(handle, Session) else handle
            if not connection.in_transaction():
                connection.begin()  # as the first statement would
            driver: Any = connection.connection.driver_connection
        except exc.UnboundExecutionError as error:
            raise self._invalid(
                "that has no connection of its own to use (its binds depend on the mapper)",
                "pass session.connection(bind_arguments=...) instead",
            ) from error
        except (exc.InvalidRequestError, exc.ResourceClosedError) as error:
            raise self._invalid(f"that cannot be used now ({error})", "pass one with a usable transaction") from error
        if connection.dialect.driver == "asyncpg" and self._writes and not driver.is_in_transaction():
            connection.exec_driver_sql("SELECT 1")  # SQLAlchemy begins on asyncpg with its own first statement
        raw = self._find_raw(driver)
        if raw is None:
            raise self._invalid(
                f"on {connection.dialect.name} by {connection.dialect.driver}, which the app cannot use",
                "make the engine with psycopg or asyncpg (postgresql+psycopg://), or for SQLite sqlite3 or aiosqlite, "
                "on the app's database",
            )
        self._root = None if connection.in_nested_transaction() else connection.get_transaction()
        if isinstance(raw, SqliteHandle) and self._writes and connection.in_nested_transaction():
            self._check_nested(connection, raw)
        return raw

    def _check_nested(self, connection: Connection, raw: SqliteHandle) -> None:
        """
        Refuse a savepoint that may be the whole transaction.

        By default sqlite3 begins before the first write only. Does a nested block come before that, its
        SAVEPOINT opens the transaction and its RELEASE commits it, whatever becomes of the outer block.
        SQLite does not tell the one from the other.
        """
        begins_itself = raw.begins == "always" or bool(connection.dispatch.begin or connection.engine.dispatch.begin)
        if not begins_itself and connection.get_transaction() not in _begun:
            raise self._invalid(
                "in a nested block on a connection that lets sqlite3 begin transactions: the end of the block may "
                "commit, and the outer block would not roll back what is started here",
                f"have SQLAlchemy emit BEGIN, by its own recipe: {_RECIPE}",
            )

    def _remember(self, raw: Handle) -> None:
        if isinstance(raw, SqliteHandle) and self._root is not None and raw.in_transaction:
            _begun.add(self._root)


def remember_begun(connection: Connection | None) -> None:
    """Note that the transaction of *connection* has really begun, so that nested blocks in it are savepoints."""
    assert connection is not None
    _begun.add(connection.get_transaction())
