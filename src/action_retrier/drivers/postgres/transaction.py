"""A transaction of ours that user code borrows, in either colour."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import psycopg

from ..._statements import Op, Rows, Statement, adrive, drive
from .. import Colour
from .connection import AnyConnection, execute, execute_async, translated
from .deadlines import cut
from .urls import Target

T = TypeVar("T")

# User code must not be able to release it by name.
_SAVEPOINT = f"action_retrier_{secrets.token_hex(8)}"


class PostgresTransaction:
    """
    An open transaction on a connection that user code holds while it runs.

    A savepoint around user code tells whether it ended the transaction: with it the savepoint
    is gone, whatever transaction is open now.
    """

    def __init__(self, connection: AnyConnection, target: Target, now_us: Callable[[], int | None]) -> None:
        self._connection = connection
        self._target = target
        self._now_us = now_us
        self._blocking: psycopg.Connection[Any] | None = None
        self.is_open = True

    threads = None  # user code may run in any

    def connection(self, colour: Colour) -> Any:
        """
        Return the connection in the colour of who uses it.

        A ``def`` mutation on an async connection runs in a thread, over the same connection of
        libpq's, which the event loop leaves alone meanwhile.
        """
        if colour == "async" or isinstance(self._connection, psycopg.Connection):
            return self._connection
        if self._blocking is None:
            self._blocking = psycopg.Connection(self._connection.pgconn)
        return self._blocking

    def abandon(self) -> None:
        """Take the connection away from user code that does not return; the server rolls back."""
        self.is_open = False
        cut(self._connection)

    # Async.

    async def run(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        async with self.savepoint():
            return await adrive(op, self._execute)

    async def _execute(self, statement: Statement) -> Rows:
        assert isinstance(self._connection, psycopg.AsyncConnection)
        return await execute_async(self._connection, statement, self._target.schema, self._now_us())

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo what happens inside if it raises, and nothing else."""
        await self._tell(f"SAVEPOINT {_SAVEPOINT}")
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.closed:
                await self._tell(f"ROLLBACK TO {_SAVEPOINT}; RELEASE {_SAVEPOINT}")
            raise
        await self._tell(f"RELEASE {_SAVEPOINT}")

    async def _tell(self, text: str) -> None:
        assert isinstance(self._connection, psycopg.AsyncConnection)
        with translated(self._target):
            await self._connection.execute(text)

    @contextlib.asynccontextmanager
    async def user_code(self) -> AsyncIterator[None]:
        """Guard a stretch in which user code holds the connection."""
        await self._tell(f"SAVEPOINT {_SAVEPOINT}")
        yield
        with _smuggled():
            await self._tell(f"RELEASE {_SAVEPOINT}")

    # Blocking.

    def run_sync(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        with self.savepoint_sync():
            return drive(op, self.execute_sync)

    def execute_sync(self, statement: Statement) -> Rows:
        """Run one statement, with no savepoint of its own."""
        return execute(self.connection("sync"), statement, self._target.schema, self._now_us())

    @contextlib.contextmanager
    def savepoint_sync(self) -> Iterator[None]:
        """Undo what happens inside if it raises, and nothing else."""
        self._tell_sync(f"SAVEPOINT {_SAVEPOINT}")
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.closed:
                self._tell_sync(f"ROLLBACK TO {_SAVEPOINT}; RELEASE {_SAVEPOINT}")
            raise
        self._tell_sync(f"RELEASE {_SAVEPOINT}")

    def _tell_sync(self, text: str) -> None:
        with translated(self._target):
            self.connection("sync").execute(text)

    @contextlib.contextmanager
    def user_code_sync(self) -> Iterator[None]:
        """Guard a stretch in which user code holds the connection."""
        self._tell_sync(f"SAVEPOINT {_SAVEPOINT}")
        yield
        with _smuggled():
            self._tell_sync(f"RELEASE {_SAVEPOINT}")


@contextlib.contextmanager
def _smuggled() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.InvalidSavepointSpecification, psycopg.errors.NoActiveSqlTransaction) as error:
        raise RuntimeError(
            "user code ended the transaction through ctx.db: it commits together with the record that it is done, "
            "so nobody else may end it. Return to commit, raise to roll back"
        ) from error
