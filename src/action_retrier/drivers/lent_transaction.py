"""A transaction on a connection of the user's engine or framework, that user code borrows from us."""

import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn, TypeVar

from .._statements import Op
from . import Colour, Threads
from .handle import Control, Handle

T = TypeVar("T")

# User code must not be able to release it by name.
_NAME = f"action_retrier_{secrets.token_hex(8)}"
_SAVEPOINT = Control(f"SAVEPOINT {_NAME}")
_UNDO = Control(f"ROLLBACK TO SAVEPOINT {_NAME}")
_RELEASE = Control(f"RELEASE SAVEPOINT {_NAME}")
# Another name: what undoes a savepoint around user code must not stop at the mark that the code has left.
_MARK_NAME = f"action_retrier_{secrets.token_hex(8)}"
_MARK = Control(f"SAVEPOINT {_MARK_NAME}")
_UNMARK = Control(f"RELEASE SAVEPOINT {_MARK_NAME}")
_GONE = frozenset({"3B001", "25P01"})  # SQLSTATEs: there is no such savepoint, or no transaction


def refuse(what: str, cause: BaseException | None = None) -> NoReturn:
    """Raise what user code gets for ending a transaction that is not its own."""
    raise RuntimeError(
        f"user code {what}: the transaction commits together with the record that it is done, so nobody "
        "else may end it. Return (or leave the block) to commit, raise to roll back"
    ) from cause


class LentTransaction:
    """
    What transactions of either colour have.

    A savepoint around user code tells whether it ended the transaction: with it the savepoint is
    gone, whatever transaction is open now.
    """

    threads: Threads | None = None

    def __init__(self, handle: Handle, turn: contextlib.ExitStack | None = None) -> None:
        self.handle = handle
        self._turn = turn or contextlib.ExitStack()
        self.is_open = True
        self.is_abandoned = False

    def connection(self, colour: Colour) -> Any:  # noqa: ARG002 - it has one
        """Return the driver's own connection."""
        return self.handle.raw

    def abandon(self) -> None:
        """Take the connection away from user code that does not return; with it the transaction is rolled back."""
        self.is_open, self.is_abandoned = False, True
        self.handle.cut()
        self._turn.close()

    def _check_not_lost(self) -> None:
        """Raise rather than begin another transaction, or commit each statement by itself."""
        if self.handle.has_ended:
            self.is_open = False
            refuse("ended the transaction, or an error of the database did")

    def _explain(self, error: BaseException, *, raised: bool) -> None:
        """Raise what it means that the savepoint could not be released; what user code has raised says the rest."""
        # SQLite has one code for all errors of statements, and this statement has only one.
        is_gone = getattr(error, "sqlstate", None) in _GONE or getattr(error, "sqlite_errorcode", None) == 1
        if is_gone:
            refuse("ended the transaction through ctx.db", error)
        if not raised:
            with self.handle.translated():
                raise error


class BlockingTransaction(LentTransaction, ABC):
    """A transaction of a blocking engine; from async code it is spoken to in a lane."""

    def __init__(self, handle: Handle, turn: contextlib.ExitStack, threads: Threads | None) -> None:
        super().__init__(handle, turn)
        self.threads = threads

    @abstractmethod
    def before_user_code(self) -> None:
        """Prepare what user code receives."""

    @abstractmethod
    def after_user_code(self, *, raised: bool) -> None:
        """Take it back. Raises RuntimeError if the transaction has been ended through it."""

    def run_sync(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        self._check_not_lost()
        return self.handle.run_sync(op)

    async def run(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        assert self.threads is not None
        return await self.threads.run(lambda: self.run_sync(op))

    @contextlib.contextmanager
    def user_code_sync(self) -> Iterator[None]:
        """Guard a stretch in which user code holds the connection."""
        self._enter()
        try:
            yield
        except BaseException:
            if self.is_open:
                self._leave(raised=True)
            raise
        self._leave()

    @contextlib.asynccontextmanager
    async def user_code(self) -> AsyncIterator[None]:
        """Guard a stretch in which user code holds the connection."""
        async with self._in_lane(self.user_code_sync()):
            yield

    @contextlib.asynccontextmanager
    async def _in_lane(self, manager: contextlib.AbstractContextManager[None]) -> AsyncIterator[None]:
        lane = self.threads
        assert lane is not None
        await lane.run(manager.__enter__)
        try:
            yield
        except BaseException as raised:
            if self.is_open:  # else user code has the lane
                error = raised
                await lane.run(lambda: manager.__exit__(type(error), error, error.__traceback__))
            raise
        await lane.run(lambda: manager.__exit__(None, None, None))

    def _enter(self) -> None:
        self.handle.execute(_MARK)
        self.before_user_code()

    def _leave(self, *, raised: bool = False) -> None:
        is_over = self.handle.has_ended
        self.after_user_code(raised=raised or is_over)
        if is_over:
            refuse("ended the transaction through ctx.db")
        try:
            self.handle.execute(_UNMARK)
        except self.handle.errors as error:
            self._explain(error, raised=raised)

    @contextlib.contextmanager
    def savepoint_sync(self) -> Iterator[None]:
        """Undo what happens inside if it raises, and nothing else."""
        self.handle.execute(_SAVEPOINT)
        try:
            yield
        except BaseException:
            if self.is_open:
                try:
                    self.handle.execute(_UNDO)
                    self.handle.execute(_RELEASE)
                except self.handle.errors:
                    self.is_open = False  # it is lost as a whole, and what raised says why
            raise
        self.handle.execute(_RELEASE)

    @contextlib.asynccontextmanager
    async def savepoint(self, *, op_first: bool = False) -> AsyncIterator[None]:  # noqa: ARG002 - all costs the same
        """Undo what happens inside if it raises, and nothing else."""
        async with self._in_lane(self.savepoint_sync()):
            yield


class AwaitedTransaction(LentTransaction, ABC):
    """A transaction of an async engine."""

    @abstractmethod
    def before_user_code(self) -> None:
        """Prepare what user code receives."""

    @abstractmethod
    async def after_user_code(self, *, raised: bool) -> None:
        """Take it back. Raises RuntimeError if the transaction has been ended through it."""

    async def run(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        self._check_not_lost()
        return await self.handle.run(op)

    def run_sync(self, op: Op[T]) -> T:
        """Never called: an async engine has async mutations."""
        raise NotImplementedError  # pragma: no cover - never called

    def user_code_sync(self) -> contextlib.AbstractContextManager[None]:
        """Never called, as `run_sync`."""
        raise NotImplementedError  # pragma: no cover - never called

    def savepoint_sync(self) -> contextlib.AbstractContextManager[None]:
        """Never called, as `run_sync`."""
        raise NotImplementedError  # pragma: no cover - never called

    @contextlib.asynccontextmanager
    async def user_code(self) -> AsyncIterator[None]:
        """Guard a stretch in which user code holds the connection."""
        await self.handle.execute_async(_MARK)
        self.before_user_code()
        try:
            yield
        except BaseException:
            if self.is_open:
                await self._leave(raised=True)
            raise
        await self._leave()

    async def _leave(self, *, raised: bool = False) -> None:
        is_over = self.handle.has_ended
        await self.after_user_code(raised=raised or is_over)
        if is_over:
            refuse("ended the transaction through ctx.db")
        try:
            await self.handle.execute_async(_UNMARK)
        except self.handle.errors as error:
            self._explain(error, raised=raised)

    @contextlib.asynccontextmanager
    async def savepoint(self, *, op_first: bool = False) -> AsyncIterator[None]:  # noqa: ARG002 - all costs the same
        """Undo what happens inside if it raises, and nothing else."""
        await self.handle.execute_async(_SAVEPOINT)
        try:
            yield
        except BaseException:
            if self.is_open:
                try:
                    await self.handle.execute_async(_UNDO)
                    await self.handle.execute_async(_RELEASE)
                except self.handle.errors:
                    self.is_open = False  # it is lost as a whole, and what raised says why
            raise
        await self.handle.execute_async(_RELEASE)
