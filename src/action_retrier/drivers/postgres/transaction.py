"""A transaction of ours that user code may hold."""

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ..._statements import Op, Rows, Statement, adrive, drive
from .. import LENT, Colour
from ..cancellation import Undivided
from .commits import Lending, settings_as_begun
from .connection import CALL_S, execute, execute_async, tell, tell_async, translated
from .deadlines import cut, deadlines
from .guarded import AsyncUserConnection, BlockingTwin, UserConnection
from .spoken import can_speak, execute_after
from .urls import Target

T = TypeVar("T")

# User code must not be able to release it by name.
_SAVEPOINT = f"action_retrier_{secrets.token_hex(8)}"
# Another name: what undoes a savepoint around user code must not stop at the mark that the code has left.
_MARK = f"action_retrier_{secrets.token_hex(8)}"
_RELEASE = f"RELEASE {_SAVEPOINT}"
_UNDO = f"ROLLBACK TO {_SAVEPOINT}"


class PostgresTransaction:
    """
    An open transaction on a connection that user code holds while it runs.

    A savepoint around user code tells whether it ended the transaction behind the guard's back:
    with it the savepoint is gone, whatever transaction is open now.

    In async code, savepoints around operations of ours are made and released along with what is sent next.
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
        self._owed: list[str] = []  # what is to be sent before anything else is
        self._within = 0  # savepoints around what runs now
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

    def _savepoint(self) -> list[str]:
        """Return what makes a savepoint; what user code before has set in this transaction must not count in it."""
        has_served, self._has_served = self._has_served, False
        before = [settings_as_begun(self._lending.resets, self._lending.idle_s)] if has_served else []
        return [*before, f"SAVEPOINT {_SAVEPOINT}"]

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
            if self._connection.guard.tried is None:
                return await self._run(op, call)  # whoever cancels it gives the transaction up
            return await call.run(self._run(op, call))

    async def _run(self, op: Op[T], call: Undivided) -> T:
        is_first = True

        async def execute(statement: Statement) -> Rows:
            nonlocal is_first
            call.go_on()
            was_first, is_first = is_first, False
            try:
                return await self._execute(statement)
            except psycopg.errors.InvalidSqlStatementName:
                if not was_first:
                    raise
                await self._tell(_UNDO)  # it was sent with the savepoint that is undone
                return await self._execute(statement)

        async with self._savepoint_of_a_call():
            result = await adrive(op, execute)
            call.go_on()
        if self._connection.guard.tried is not None:
            await self._pay()
        return result

    async def _execute(self, statement: Statement) -> Rows:
        assert isinstance(self._connection, psycopg.AsyncConnection)
        if not can_speak(self._connection):
            await self._pay()
            with self._our_call():
                return await execute_async(self._connection, statement, self._target.schema, self._now_us())
        owed, self._owed = self._owed, []
        with self._our_call():
            return await execute_after(self._connection, owed, statement, self._target.schema, self._now_us())

    @contextlib.asynccontextmanager
    async def _savepoint_of_a_call(self) -> AsyncIterator[None]:
        """Undo a call of ours if it raises. One savepoint is enough where it is the first in another one."""
        if not self._owed or self._owed[-1] != f"SAVEPOINT {_SAVEPOINT}":
            async with self.savepoint(op_first=True):
                yield
            return
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.closed:
                await self._tell(_UNDO)
            raise

    @contextlib.asynccontextmanager
    async def savepoint(self, *, op_first: bool = False) -> AsyncIterator[None]:
        """Undo what happens inside if it raises, and nothing else."""
        self._owed += self._savepoint()
        if not op_first:
            await self._pay()
        self._within += 1
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.closed:
                with _smuggled():
                    await self._tell(_UNDO, _RELEASE)
            raise
        finally:
            self._within -= 1
        self._owed.append(_RELEASE)
        if not op_first:
            await self._pay()

    async def pay(self) -> None:
        """
        Send what is still to be sent; before the transaction is committed.

        Raises:
            RuntimeError: User code has ended the transaction, and begun another.
        """
        with _smuggled():
            await self._pay()

    async def _pay(self) -> None:
        if self._owed:
            await self._tell()

    async def _tell(self, *texts: str) -> None:
        assert isinstance(self._connection, psycopg.AsyncConnection)
        owed, self._owed = self._owed, []
        with self._our_call():
            await tell_async(self._connection, "; ".join((*owed, *texts)))

    @contextlib.asynccontextmanager
    async def user_code(self) -> AsyncIterator[None]:
        """Guard a stretch in which user code holds the connection."""
        self._settle()
        # A savepoint that is there is a mark as well.
        is_marked = bool(self._within)
        if is_marked:
            await self._pay()
        else:
            await self._tell(f"SAVEPOINT {_MARK}")
        with self._guarded():
            yield
        if not self.is_open:
            return
        self._has_served = True
        # Marked by a savepoint that is still ours to release, and released along with what comes next.
        if not is_marked or self._connection.pgconn.transaction_status != TransactionStatus.INTRANS:
            with _smuggled():
                await self._tell(_RELEASE if is_marked else f"RELEASE {_MARK}")

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
        self._tell_sync("; ".join(self._savepoint()))
        try:
            yield
        except BaseException:
            if self.is_open and not self._connection.closed:
                self._tell_sync(f"{_UNDO}; {_RELEASE}")
            raise
        self._tell_sync(_RELEASE)

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
