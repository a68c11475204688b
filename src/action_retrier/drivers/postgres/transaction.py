"""A transaction of ours that user code may hold."""

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import psycopg

from ..._statements import Op, Rows, Statement, adrive, drive
from .. import LENT, Colour
from ..cancellation import Undivided
from .commits import Lending, settings_as_begun
from .connection import CALL_S, execute, execute_async, tell, tell_async, translated
from .deadlines import cut, deadlines
from .guarded import AsyncUserConnection, BlockingTwin, UserConnection
from .urls import Target

T = TypeVar("T")

# User code must not be able to release it by name.
_SAVEPOINT = f"action_retrier_{secrets.token_hex(8)}"
# Another name: what undoes a savepoint around user code must not stop at the mark that the code has left.
_MARK = f"action_retrier_{secrets.token_hex(8)}"


class PostgresTransaction:
    """
    An open transaction on a connection that user code holds while it runs.

    A savepoint around user code tells whether it ended the transaction behind the guard's back:
    with it the savepoint is gone, whatever transaction is open now.
    """

    def __init__(
        self,
        connection: AsyncUserConnection | UserConnection,
        target: Target,
        now_us: Callable[[], int | None],
        lending: Lending,
        *,
        call_s: float = CALL_S,
    ) -> None:
        self._connection = connection
        self._target = target
        self._now_us = now_us
        self._call_s = call_s
        self._lending = lending
        self._has_served = False
        self.to_release: tuple[str, ...] = ()
        """What is done once it has ended, for what user code may have left that others wait for."""
        self._twin: BlockingTwin | None = None
        # User code's tasks, or threads, share it; what undoes the one's call must not undo the other's.
        self._turn, self._sync_turn = asyncio.Lock(), threading.Lock()
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
        if self._twin is None:
            self._twin = BlockingTwin(self._connection)
        return self._twin

    def abandon(self) -> None:
        """Take the connection away from user code that does not return; the server rolls back."""
        self.is_open = False
        self._connection.is_abandoned = True
        cut(self._connection)

    def _settle(self) -> None:
        """Take back what user code before has set on the connection, in this transaction or an earlier one."""
        self._connection.settle()
        self._twin = None
        self.to_release = self._lending.resets.unlock

    def _savepoint(self) -> str:
        """Return what makes a savepoint; what user code before has set in this transaction must not count in it."""
        has_served, self._has_served = self._has_served, False
        before = f"{settings_as_begun(self._lending.resets, self._lending.idle_s)}; " if has_served else ""
        return f"{before}SAVEPOINT {_SAVEPOINT}"

    @contextlib.contextmanager
    def _our_call(self) -> Iterator[None]:
        """Make a call of ours, in the midst of user code's perhaps."""
        guard = self._connection.guard
        outer, guard.tried = guard.tried, None
        try:
            with translated(self._target), deadlines.within(self._call_s, self._connection):
                yield
        finally:
            guard.tried = outer

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Refuse what would end the transaction; tell of it even where the code swallowed the refusal."""
        guard = self._connection.guard
        outer, guard.tried = guard.tried, []
        problem: BaseException | None = None
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - raised again below, perhaps with a better explanation
            problem = error
        finally:
            tried, guard.tried = guard.tried or [], outer
        if tried:
            raise RuntimeError(
                f"user code tried to {', '.join(sorted(set(tried)))} through ctx.db: {LENT}"
            ) from problem
        if problem is not None:
            raise problem

    # Async.

    async def run(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        async with self._turn:
            call = Undivided()
            return await call.run(self._run(op, call))

    async def _run(self, op: Op[T], call: Undivided) -> T:
        async def execute(statement: Statement) -> Rows:
            call.go_on()
            return await self._execute(statement)

        async with self.savepoint():
            result = await adrive(op, execute)
            call.go_on()
        return result

    async def _execute(self, statement: Statement) -> Rows:
        assert isinstance(self._connection, psycopg.AsyncConnection)
        with self._our_call():
            return await execute_async(self._connection, statement, self._target.schema, self._now_us())

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo what happens inside if it raises, and nothing else."""
        await self._tell(self._savepoint())
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.closed:
                await self._tell(f"ROLLBACK TO {_SAVEPOINT}; RELEASE {_SAVEPOINT}")
            raise
        await self._tell(f"RELEASE {_SAVEPOINT}")

    async def _tell(self, text: str) -> None:
        assert isinstance(self._connection, psycopg.AsyncConnection)
        with self._our_call():
            await tell_async(self._connection, text)

    @contextlib.asynccontextmanager
    async def user_code(self) -> AsyncIterator[None]:
        """Guard a stretch in which user code holds the connection."""
        self._settle()
        await self._tell(f"SAVEPOINT {_MARK}")
        with self._guarded():
            yield
        if self.is_open:
            with _smuggled():
                await self._tell(f"RELEASE {_MARK}")
            self._has_served = True

    # Blocking.

    def run_sync(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        with self._sync_turn, self.savepoint_sync():
            return drive(op, self.execute_sync)

    def execute_sync(self, statement: Statement) -> Rows:
        """Run one statement, with no savepoint of its own."""
        with self._our_call():
            return execute(self.connection("sync"), statement, self._target.schema, self._now_us())

    @contextlib.contextmanager
    def savepoint_sync(self) -> Iterator[None]:
        """Undo what happens inside if it raises, and nothing else."""
        self._tell_sync(self._savepoint())
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.closed:
                self._tell_sync(f"ROLLBACK TO {_SAVEPOINT}; RELEASE {_SAVEPOINT}")
            raise
        self._tell_sync(f"RELEASE {_SAVEPOINT}")

    def _tell_sync(self, text: str) -> None:
        with self._our_call():
            tell(self.connection("sync"), text)

    @contextlib.contextmanager
    def user_code_sync(self) -> Iterator[None]:
        """Guard a stretch in which user code holds the connection."""
        self._settle()
        self._tell_sync(f"SAVEPOINT {_MARK}")
        with self._guarded():
            yield
        if self.is_open:
            with _smuggled():
                self._tell_sync(f"RELEASE {_MARK}")
            self._has_served = True


@contextlib.contextmanager
def _smuggled() -> Iterator[None]:
    try:
        yield
    except (psycopg.errors.InvalidSavepointSpecification, psycopg.errors.NoActiveSqlTransaction) as error:
        raise RuntimeError(f"user code ended the transaction behind ctx.db: {LENT}") from error
