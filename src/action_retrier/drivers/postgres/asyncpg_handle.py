"""The user's own connection of asyncpg's, or what its pool hands out."""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import asyncpg
import psycopg

from ..._statements import Rows, Statement
from ...errors import DatabaseUnavailable, InvalidContext
from ..handle import Control
from .connection import explain, given, parameters, sql, translated
from .handle import Home, PostgresHandle
from .urls import Target


def is_connection(handle: object) -> bool:
    """Tell whether *handle* is a connection, or a pool's proxy of one."""
    return isinstance(handle, asyncpg.Connection | asyncpg.pool.PoolConnectionProxy)


class AsyncpgHandle(PostgresHandle):
    """
    A connection of asyncpg's.

    Its type codecs may be the user's (JSON that arrives as objects, say). Ours are text and integers
    on the wire, so statements run the way that asyncpg asks the catalog: without custom codecs.
    """

    colours = frozenset({"async"})
    errors = (asyncpg.PostgresError, asyncpg.InterfaceError)

    def __init__(
        self, connection: Any, target: Target, home: Home, now_us: Callable[[], int | None], *, writes: bool
    ) -> None:
        super().__init__(target, home, now_us, writes=writes)
        connection = getattr(connection, "_con", connection)  # a proxy has no weak references
        if connection is None or connection.is_closed():
            raise InvalidContext(
                problem="ctx is an asyncpg Connection that is closed, or was given back to its pool",
                remedy="pass one that is open",
            )
        self._connection = connection
        if writes and not self.in_transaction:
            raise InvalidContext(
                problem="ctx is an asyncpg Connection with no transaction open",
                remedy="open one first (async with connection.transaction()), "
                "or pass the app to have the call commit by itself",
            )

    @property
    def raw(self) -> Any:
        """The connection itself."""
        return self._connection

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return bool(self._connection.is_in_transaction())

    def cut(self) -> None:
        """Close it without a word; the server rolls back."""
        self._connection.terminate()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what is wrong with the connection into one of our errors."""
        try:
            with translated(self._target):  # the database may have to be opened, which is done by psycopg
                yield
        except asyncpg.InFailedSQLTransactionError as error:
            raise InvalidContext(
                problem="ctx is an asyncpg Connection whose transaction has failed", remedy="roll it back first"
            ) from error
        except asyncpg.InterfaceError as error:
            if self._connection.is_closed():
                raise self._unavailable(error) from error
            raise InvalidContext(
                problem=f"ctx is an asyncpg Connection that cannot be used now ({error})",
                remedy="await what it is doing first; a connection runs one statement at a time",
            ) from error
        except (asyncpg.PostgresError, ConnectionError) as error:
            # It bears its SQLSTATE as psycopg's errors do.
            ours = explain(cast("psycopg.Error", error), self._target) if hasattr(error, "sqlstate") else None
            self.refuse_read_only(error)
            if ours is None and not isinstance(error, ConnectionError):
                raise
            raise ours or self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            problem=f"{self._target.location}: {error}", remedy="check that the server runs and can be reached"
        )

    async def execute_async(self, statement: Statement) -> Rows:
        """Run one statement, without custom codecs and record classes."""
        if self._connection.is_closed():  # since our turn was waited for: asyncpg's own methods look, too
            raise asyncpg.InterfaceError("the connection was closed")
        if isinstance(statement, Control):
            await self._connection.execute(statement.name)
            return []
        rows = await self._connection._execute(  # noqa: SLF001 - `fetch` with the one argument that it lacks
            _query(statement.name, self._target.schema),
            [*given(statement, self._target.schema, self._now_us()).values()],
            0,
            None,
            ignore_custom_codec=True,
            record_class=asyncpg.Record,
        )
        return [dict(row) for row in rows]


@cache
def _query(name: str, schema: str) -> str:
    """Return a statement the way asyncpg takes it."""
    numbers = {parameter: f"${number}" for number, parameter in enumerate(parameters(name, schema), 1)}
    return re.sub(r"(?<!:):(\w+)", lambda found: numbers[found[1]], sql(name, schema))
