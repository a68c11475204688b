"""The user's own connection to PostgreSQL, with whatever transaction it holds."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import dict_row

from ..._statements import Op, Rows, Statement
from ...errors import DatabaseUnavailable, InvalidContext
from .. import Colour
from ..handle import Control, Handle, libraries
from .connection import AnyConnection, AsyncCursor, Cursor, given, query, translated
from .deadlines import cut
from .together import Batch
from .urls import Target

_known: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


@cache
def _can_pipeline() -> bool:
    """Tell whether this libpq can send several statements before it waits."""
    return psycopg.Pipeline.is_supported()


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

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the server says of itself into `DatabaseUnavailable`."""
        try:
            with translated(self._target):
                yield
        except DatabaseUnavailable as error:
            self.refuse_read_only(error.__cause__)
            raise

    @staticmethod
    def refuse_read_only(error: BaseException | None) -> None:
        """Raise `InvalidContext` if *error* speaks of the user's transaction."""
        if getattr(error, "sqlstate", None) == "25006":
            raise InvalidContext(
                problem="ctx holds a transaction that is read-only",
                remedy="begin one that may write; if the server is a standby, connect to the primary",
            ) from error

    def begin(self) -> Op[None]:
        """Check once for each connection that it leads to our database: that does not change."""
        if _known.get(self.raw) == self._home.installation:
            return
        found = None
        (table,) = yield Statement("select_table", {"name": f"{self._target.schema}.meta"})
        if table["is_there"] and not table["is_readable"]:
            raise InvalidContext(
                problem=f"ctx is a connection whose role may not read the schema {self._target.schema}",
                remedy="grant it USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on its tables",
            )
        if table["is_there"]:
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

    def begin(self) -> Op[None]:
        """Check what it is, now that it is our turn, and where it leads."""
        self._check_state()
        yield from super().begin()

    def _check(self) -> None:
        if self._connection.closed:
            kind = type(self._connection).__name__
            raise InvalidContext(problem=f"ctx is a psycopg {kind} that is closed", remedy="pass one that is open")
        if not self.is_shared:
            self._check_state()

    def _check_state(self) -> None:
        connection, kind = self._connection, type(self._connection).__name__
        if connection.info.encoding != "utf-8":
            raise InvalidContext(
                problem=f"ctx is a psycopg {kind} whose client_encoding is not UTF8 ({connection.info.encoding})",
                remedy="leave client_encoding at UTF8: JSON is stored through it",
            )
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
        if self._writes and self._target.notify and connection._tpc is not None:  # noqa: SLF001 - nothing else tells
            raise InvalidContext(
                problem=f"ctx is a psycopg {kind} in a two-phase transaction, which PostgreSQL does not prepare once "
                "it has notified a worker",
                remedy="use an ordinary transaction, or ?notify=false in the URLs of all that use the database",
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
        assert isinstance(self._connection, psycopg.Connection)
        with Cursor(self._connection, row_factory=dict_row) as cursor:
            cursor.execute(*self._sent(statement), prepare=self._prepares(statement))
            return cursor.fetchall() if cursor.description is not None else []

    async def execute_async(self, statement: Statement) -> Rows:
        """Run one statement on a cursor of our own."""
        assert isinstance(self._connection, psycopg.AsyncConnection)
        async with AsyncCursor(self._connection, row_factory=dict_row) as cursor:
            await cursor.execute(*self._sent(statement), prepare=self._prepares(statement))
            return await cursor.fetchall() if cursor.description is not None else []

    def execute_together(self, statements: Sequence[Statement]) -> Rows:
        """Run statements in one exchange: a savepoint costs no wait for the server of its own."""
        assert isinstance(self._connection, psycopg.Connection)
        if not self._can_send_together(statements):
            return super().execute_together(statements)
        batch = self._batch(statements)
        with self._connection.lock:
            try:
                return batch.rows_of(self._connection.wait(batch.exchange()))
            except psycopg.errors.InvalidSqlStatementName:
                again = batch.after_discarding()
                return again.rows_of(self._connection.wait(again.exchange()))

    async def execute_together_async(self, statements: Sequence[Statement]) -> Rows:
        """Run statements in one exchange: a savepoint costs no wait for the server of its own."""
        assert isinstance(self._connection, psycopg.AsyncConnection)
        if not self._can_send_together(statements):
            return await super().execute_together_async(statements)
        batch = self._batch(statements)
        async with self._connection.lock:
            try:
                return batch.rows_of(await self._connection.wait(batch.exchange()))
            except psycopg.errors.InvalidSqlStatementName:
                again = batch.after_discarding()
                return again.rows_of(await self._connection.wait(again.exchange()))

    def _can_send_together(self, statements: Sequence[Statement]) -> bool:
        """Tell whether it is possible, and worth it; what begins a transaction is left to psycopg."""
        return len(statements) > 1 and self.in_transaction and _can_pipeline()

    def _batch(self, statements: Sequence[Statement]) -> Batch:
        return Batch(self._connection, statements, self._target.schema, self._now_us())

    def _sent(self, statement: Statement) -> tuple[bytes, dict[str, Any] | None]:
        if isinstance(statement, Control):
            return statement.name.encode(), None
        schema = self._target.schema
        return query(statement.name, schema), given(statement, schema, self._now_us())

    @staticmethod
    def _prepares(statement: Statement) -> bool | None:
        """Whether to prepare it; None leaves that to the connection, as its user has set it."""
        return False if isinstance(statement, Control) else None
