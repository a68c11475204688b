"""
Databases whose transactions are those of a user's own engine or framework.

Everything but transactions for user code goes through a database of ours that is reached by the
same address, on connections of ours. So a mutation has what the user's models need, and a
worker's own work neither waits for the user's pool nor uses it up.
"""

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, Protocol, TypeVar

from .._statements import Op
from .._threads import DaemonThreads
from . import IDLE_S, Changes, Colour, Database, Executor, Isolation, Leases, Transaction
from .lent_transaction import BlockingTransaction

T = TypeVar("T")
B = TypeVar("B", bound=BlockingTransaction)

_KEPT_LANES = 4


def protection(idle_s: float) -> str:
    """Return what has PostgreSQL end a transaction whose client may be gone: it must not keep its locks."""
    return f"SET LOCAL idle_in_transaction_session_timeout = {round(idle_s * 1000)}"


class Reached(Database, Protocol):
    """What is asked of the database underneath, beside the protocol."""

    def turn_to_write(self) -> AbstractContextManager[None]:
        """Queue with other writers for a transaction on a connection that is not ours."""


class LentDatabase(ABC):
    """A database that leaves everything but user code's transactions to the one underneath."""

    mutation_colours: frozenset[Colour]

    @property
    @abstractmethod
    def underneath(self) -> Reached:
        """The database of ours, at the same address."""

    @abstractmethod
    def transaction(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction of the user's engine: commit on exit, rollback on error."""

    @abstractmethod
    def transaction_sync(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AbstractContextManager[Transaction]:
        """Open a transaction of the user's engine: commit on exit, rollback on error."""

    @property
    def works_beside(self) -> bool:
        """Whether it works while this process does something else."""
        return self.underneath.works_beside

    def is_transient(self, error: BaseException) -> bool:
        """Tell whether the transaction that *error* has ended may well succeed when it is done again."""
        return self.underneath.is_transient(error)

    def committed(self) -> None:
        """Tell of a commit that happened on a connection that is not ours."""
        notify: Callable[[], None] = getattr(self.underneath.changes, "notify", lambda: None)
        notify()

    # What is the same underneath.

    @property
    def location(self) -> str:
        """Where it is, for people."""
        return self.underneath.location

    @property
    def turn(self) -> Hashable:
        """What a transaction waits for."""
        return self.underneath.turn

    @property
    def installation(self) -> str:
        """The id by which handles on this database are told from those on others; opens it."""
        return self.underneath.installation

    @property
    def changes(self) -> Changes:
        """How commits are noticed."""
        return self.underneath.changes

    @property
    def leases(self) -> Leases:
        """How workers' rights are kept."""
        return self.underneath.leases

    @property
    def is_open(self) -> bool:
        """Whether it has been opened in this process, and not been closed since."""
        return self.underneath.is_open

    def exists(self) -> bool:
        """Tell whether there is such a database."""
        return self.underneath.exists()

    def open(self) -> None:
        """Connect, and create or upgrade the schema."""
        self.underneath.open()

    def migrate(self) -> int:
        """Create or upgrade the schema; return its version."""
        return self.underneath.migrate()

    def schema_sql(self) -> str:
        """Return a script that creates what `migrate` creates."""
        return self.underneath.schema_sql()

    def close(self) -> None:
        """Let go of connections and threads; the user's engine is the user's."""
        self.underneath.close()

    async def read(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""
        return await self.underneath.read(make)

    def read_sync(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""
        return self.underneath.read_sync(make)

    async def write(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:
        """Run an operation in a transaction of its own."""
        return await self.underneath.write(make, patience_s=patience_s, apart=apart)

    def write_sync(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:
        """Run an operation in a transaction of its own."""
        return self.underneath.write_sync(make, patience_s=patience_s, apart=apart)

    def in_user_thread(self) -> AbstractContextManager[None]:
        """See, around user code in a thread of ours, to what it has opened there for the thread."""
        return self.underneath.in_user_thread()

    def executor(self, handle: Any, *, writes: bool) -> Executor | None:
        """Return what runs operations through the user's own *handle*."""
        return self.underneath.executor(handle, writes=writes)

    def diagnose(self) -> Sequence[tuple[str, Literal["ok", "warning", "error"], str]]:
        """Check the database."""
        return self.underneath.diagnose()


class Lanes:
    """Threads that are each lent as a whole: what a transaction does in one, it does in no other."""

    def __init__(self, name: str, at_end: Callable[[], None] = lambda: None) -> None:
        """
        Begin with none.

        Args:
            at_end: Done in each of them before it ends.
        """
        self._name = name
        self._at_end = at_end
        self._lock = threading.Lock()
        self._idle: list[DaemonThreads] = []

    @contextlib.asynccontextmanager
    async def entered(self, make: Callable[[DaemonThreads], AbstractContextManager[B]]) -> AsyncIterator[B]:
        """Enter and leave a transaction in a lane that it has for itself."""
        lane = self._take()
        manager = make(lane)
        entering = asyncio.ensure_future(lane.run(manager.__enter__))
        try:
            transaction = await asyncio.shield(entering)
        except BaseException as error:
            problem = error
            if isinstance(error, asyncio.CancelledError):
                lane.submit(lambda: _leave(manager, problem))  # once it has been entered
            self._give_back(lane)
            raise
        try:
            yield transaction
        except BaseException as error:
            problem = error
            if transaction.is_abandoned:
                lane.submit(lambda: _leave(manager, problem))  # once user code, which has the lane, returns
            else:
                await asyncio.shield(lane.run(lambda: _leave(manager, problem)))
            raise
        else:
            await asyncio.shield(lane.run(lambda: manager.__exit__(None, None, None)))
        finally:
            self._give_back(lane, is_stuck=transaction.is_abandoned)

    def _take(self) -> DaemonThreads:
        with self._lock:
            return self._idle.pop() if self._idle else DaemonThreads(1, self._name, idle_s=None)

    def _give_back(self, lane: DaemonThreads, *, is_stuck: bool = False) -> None:
        """Let others have it; one whose last call does not return ends when that does."""
        with self._lock:
            if not is_stuck and len(self._idle) < _KEPT_LANES:
                self._idle.append(lane)
                return
        self._end(lane)

    def close(self) -> None:
        """End those that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for lane in idle:
            self._end(lane)

    def _end(self, lane: DaemonThreads) -> None:
        lane.submit(self._at_end)
        lane.close()


def _leave(manager: AbstractContextManager[Any], error: BaseException) -> None:
    """Leave a block that *error* is leaving; whoever called us raises it."""
    with contextlib.suppress(BaseException):
        manager.__exit__(type(error), error, error.__traceback__)
