"""
Users' own handles: what holds the transaction in which a call is to happen.

A driver knows the connections of its client libraries; what lies around those (an ORM's session, a
framework's connection) is unwrapped by the library's own package here. None of them is imported
unless the user has made something of it.
"""

import asyncio
import contextlib
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from .._statements import Op, Rows, Statement, adrive, drive
from . import Colour, Executor
from .cancellation import Undivided

T = TypeVar("T")


class Control(Statement):
    """Transaction control, which is its own text and has no rows."""


_SAVEPOINT = Control("SAVEPOINT action_retrier_call")
_ROLLBACK_TO = Control("ROLLBACK TO SAVEPOINT action_retrier_call")
_RELEASE = Control("RELEASE SAVEPOINT action_retrier_call")


class _Guard:
    """The savepoint around an operation: made with its first statement, released with its last one if that is known."""

    def __init__(self, *, undoes_statements: bool) -> None:
        """
        Begin with none.

        Args:
            undoes_statements: One that fails leaves nothing behind, and the transaction open: alone, it needs none.
        """
        self._undoes_statements = undoes_statements
        self._is_open = False

    def around(self, statement: Statement) -> list[Statement]:
        """Return what is to be run with *statement*."""
        is_one = statement.is_last and len(statement.rows) <= 1  # more rows are more statements
        if self._undoes_statements and is_one and not self._is_open:
            return [statement]
        before = [] if self._is_open else [_SAVEPOINT]
        self._is_open = True
        return [*before, statement, *([_RELEASE] if statement.is_last else [])]

    def has_run(self, statement: Statement) -> None:
        """Note that *statement* has not failed."""
        self._is_open = not statement.is_last

    def end(self) -> list[Statement]:
        """Return what keeps what was done."""
        return [_RELEASE] if self._is_open else []

    def undo(self) -> list[Statement]:
        """Return what takes it back."""
        return [_ROLLBACK_TO, _RELEASE] if self._is_open else []


_turns: "weakref.WeakKeyDictionary[Any, asyncio.Lock]" = weakref.WeakKeyDictionary()
_sync_turns: "weakref.WeakKeyDictionary[Any, threading.Lock]" = weakref.WeakKeyDictionary()


class Handle(ABC):
    """
    Runs operations on a connection of the user's; it commits, or does not, when the user does.

    Tasks, or threads, may share a connection, but not a savepoint: what undoes the one's call would undo the
    other's. So calls on one connection take turns.
    """

    colours: frozenset[Colour]
    """Which retriers may use it."""
    errors: ClassVar[tuple[type[Exception], ...]]
    """What the client library raises."""
    undoes_statements: ClassVar[bool] = False
    """Whether a statement that fails leaves nothing behind, and the transaction open."""
    waits: ClassVar[bool] = True
    """Whether an async call has to wait for the database, so that it may be canceled meanwhile."""

    def __init__(self, *, writes: bool) -> None:
        self._writes = writes

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""

    @property
    def has_ended(self) -> bool:
        """Whether a transaction that was open on it is no more; one that has failed still is."""
        return not self.in_transaction

    @property
    @abstractmethod
    def raw(self) -> Any:
        """The driver's own connection."""

    @abstractmethod
    def begin(self) -> Op[None]:
        """
        Check that it leads to our database, and begin what the user has not begun yet.

        Raises:
            InvalidContext: It cannot hold the transaction.
        """

    @abstractmethod
    def translated(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the client says of the database, not of a statement, into one of our errors."""

    @abstractmethod
    def cut(self) -> None:
        """Have the transaction rolled back, and whoever still uses the connection fail."""

    def open(self) -> None:  # noqa: B027 - some have nothing to open
        """Open what *begin* compares with."""

    async def open_async(self) -> None:  # noqa: B027 - as `open`
        """Open what *begin* compares with."""

    def alone(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Wait for the other tasks' calls on the connection."""
        return _turns.get(self.raw) or _turns.setdefault(self.raw, asyncio.Lock())

    def alone_sync(self) -> contextlib.AbstractContextManager[object]:
        """Wait for the other threads' calls on the connection."""
        return _sync_turns.get(self.raw) or _sync_turns.setdefault(self.raw, threading.Lock())

    @property
    def is_shared(self) -> bool:
        """Whether somebody else's call is under way on the connection: what state it is in, shows after that."""
        raw = self.raw
        turns = (_turns.get(raw), _sync_turns.get(raw))
        return any(turn is not None and turn.locked() for turn in turns)

    def execute(self, statement: Statement) -> Rows:
        """Run one statement, blocking; whatever cursors and factories the user's connection has."""
        raise NotImplementedError  # pragma: no cover - async clients have no blocking calls

    async def execute_async(self, statement: Statement) -> Rows:
        """Run one statement; whatever cursors and factories the user's connection has."""
        return self.execute(statement)

    def execute_together(self, statements: Sequence[Statement]) -> Rows:
        """Run statements of which one has rows, in one exchange if the client can do that."""
        return [row for statement in statements for row in self.execute(statement)]

    async def execute_together_async(self, statements: Sequence[Statement]) -> Rows:
        """Run statements of which one has rows, in one exchange if the client can do that."""
        return [row for statement in statements for row in await self.execute_async(statement)]

    async def run(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind, and the transaction as it was."""
        await self.open_async()
        async with self.alone():
            call = Undivided()
            running = self._run(op, call)
            return await (call.run(running) if self.waits else running)

    async def _run(self, op: Op[T], call: Undivided) -> T:
        with self.translated():
            await adrive(self.begin(), self.execute_async)
            if not self._is_guarded:
                return await adrive(op, self.execute_async)
            guard = _Guard(undoes_statements=self.undoes_statements)

            async def execute(statement: Statement) -> Rows:
                call.go_on()
                rows = await self.execute_together_async(guard.around(statement))
                guard.has_run(statement)
                return rows

            try:
                result = await adrive(op, execute)
                if guard.end():
                    call.go_on()
            except BaseException:
                with contextlib.suppress(*self.errors):  # the connection, or the transaction, may be gone
                    await self.execute_together_async(guard.undo())
                raise
            await self.execute_together_async(guard.end())
            return result

    def run_sync(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind, and the transaction as it was."""
        self.open()
        with self.alone_sync():
            return self._run_sync(op)

    def _run_sync(self, op: Op[T]) -> T:
        with self.translated():
            drive(self.begin(), self.execute)
            if not self._is_guarded:
                return drive(op, self.execute)
            guard = _Guard(undoes_statements=self.undoes_statements)

            def execute(statement: Statement) -> Rows:
                rows = self.execute_together(guard.around(statement))
                guard.has_run(statement)
                return rows

            try:
                result = drive(op, execute)
            except BaseException:
                with contextlib.suppress(*self.errors):  # the connection, or the transaction, may be gone
                    self.execute_together(guard.undo())
                raise
            self.execute_together(guard.end())
            return result

    @property
    def _is_guarded(self) -> bool:
        return self._writes


FindRaw = Callable[[object], Handle | None]
"""Returns what runs operations on a connection of one of a driver's client libraries; None for anything else."""


def find(handle: object, find_raw: FindRaw, *, writes: bool) -> Executor | None:
    """
    Return what runs operations through *handle*; None if it is no handle that is known.

    Raises:
        InvalidContext: It is one, and cannot hold the transaction.
    """
    found = find_raw(handle)
    if found is not None:
        return found
    makers = libraries(handle)
    if "sqlalchemy" in makers:
        from .sqlalchemy import find_handle  # noqa: PLC0415 - the user has imported the library, or we do not

        return find_handle(handle, find_raw, writes=writes)
    if "django" in makers:
        from .django import find_handle as find_django  # noqa: PLC0415 - as above

        return find_django(handle, find_raw, writes=writes)
    return None


def libraries(handle: object) -> set[str]:
    """Return the packages that the type of *handle*, or what it inherits from, was made by."""
    return {base.__module__.partition(".")[0] for base in type(handle).__mro__}
