"""A user's engine as the database of an App: mutations run in its transactions."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from ..._clock import Clock
from ..._statements import adrive, drive
from ..._threads import DaemonThreads
from .. import IDLE_S, Isolation, open_database
from ..handle import Handle
from ..lent import Lanes, LentDatabase, Reached, protection
from .handle import SqlalchemyHandle, remember_begun
from .transaction import AsyncEngineTransaction, EngineTransaction
from .urls import shown_url, url_of

if TYPE_CHECKING:  # importing it takes greenlet, which blocking programs need not have
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_THREADS = 8


class _EngineDatabase(LentDatabase):
    """What databases of either kind of engine have."""

    def __init__(self, engine: Engine, *, clock: Clock, auto_migrate: bool) -> None:
        self._sync_engine = engine
        self._underneath: Any = open_database(url_of(engine), clock=clock, auto_migrate=auto_migrate)

    @property
    def underneath(self) -> Reached:
        """The database of ours, at the same address."""
        reached: Reached = self._underneath
        return reached

    @property
    def url(self) -> str:
        """The engine's, with the password masked."""
        return shown_url(self._sync_engine)

    def _begin(self, connection: Connection, idle_s: float) -> Handle:
        """Have SQLAlchemy begin, and return what runs on the driver's connection."""
        connection.begin()
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(protection(idle_s))
        handle = SqlalchemyHandle(connection, connection, "sync", self._find_raw, writes=True)
        return handle.unwrap(connection)

    def _find_raw(self, driver: object) -> Handle | None:
        found = self._underneath.executor(driver, writes=True)
        return found if isinstance(found, Handle) else None


def _options(connection: "Connection | AsyncConnection", isolation: Isolation) -> dict[str, Any]:
    """Return execution options of a transaction; SQLite has one level, and how it begins is the user's own choice."""
    return {"isolation_level": isolation.upper()} if connection.dialect.name == "postgresql" else {}


class EngineDatabase(_EngineDatabase):
    """A database by a blocking engine."""

    mutation_colours = frozenset({"sync"})

    def __init__(self, engine: Engine, *, clock: Clock, auto_migrate: bool) -> None:
        super().__init__(engine, clock=clock, auto_migrate=auto_migrate)
        self._lanes = Lanes("action-retrier-engine")

    def close(self) -> None:
        """Let go of connections and threads of ours."""
        super().close()
        self._lanes.close()

    @contextlib.contextmanager
    def transaction_sync(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> Iterator[EngineTransaction]:
        """Open a transaction of the engine's: commit on exit, rollback on error."""
        with self._opened(isolation, idle_s, None) as transaction:
            yield transaction

    @contextlib.contextmanager
    def _opened(self, isolation: Isolation, idle_s: float, lane: DaemonThreads | None) -> Iterator[EngineTransaction]:
        self.open()
        with contextlib.ExitStack() as turn:
            turn.enter_context(self.underneath.turn_to_write())
            connection = self._sync_engine.connect()
            transaction: EngineTransaction | None = None
            try:
                connection = connection.execution_options(**_options(connection, isolation))
                handle = self._begin(connection, idle_s)
                handle.open()
                with handle.translated():
                    drive(handle.begin(), handle.execute)
                remember_begun(connection)
                transaction = EngineTransaction(connection, handle, turn, lane)
                try:
                    yield transaction
                    transaction.commit()
                finally:
                    transaction.is_open = False
            except BaseException:
                if transaction is None or not transaction.is_abandoned:
                    _roll_back(connection)
                raise
            finally:
                _return(connection, is_abandoned=transaction is not None and transaction.is_abandoned)
        self.committed()

    @contextlib.asynccontextmanager
    async def transaction(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AsyncIterator[EngineTransaction]:
        """Open a transaction of the engine's, in a thread of its own: commit on exit, rollback on error."""
        async with self._lanes.entered(lambda lane: self._opened(isolation, idle_s, lane)) as transaction:
            yield transaction


def _roll_back(connection: Connection) -> None:
    """Roll back at the driver's: of a commit that was refused, SQLAlchemy believes that the transaction has ended."""
    try:
        connection.connection.rollback()
    except Exception:  # noqa: BLE001 - a connection that cannot even do that is replaced
        connection.invalidate()


def _return(connection: Connection, *, is_abandoned: bool) -> None:
    """Give a connection back to its pool, which rolls back; or, where user code still has it, let it drop."""
    if not is_abandoned:
        connection.close()
        return
    # Closing what a thread is using is not safe with every driver: it goes when nobody holds it any more.
    with contextlib.suppress(Exception):
        connection.detach()


class AsyncEngineDatabase(_EngineDatabase):
    """A database by an async engine."""

    mutation_colours = frozenset({"async"})

    def __init__(self, engine: "AsyncEngine", *, clock: Clock, auto_migrate: bool) -> None:
        super().__init__(engine.sync_engine, clock=clock, auto_migrate=auto_migrate)
        self._engine = engine
        self._threads = DaemonThreads(_THREADS, "action-retrier-engine")

    def close(self) -> None:
        """Let go of connections and threads of ours."""
        super().close()
        self._threads.close()
        self._threads = DaemonThreads(_THREADS, "action-retrier-engine")

    def transaction_sync(self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S) -> Any:
        """Never called: an async engine has async mutations and transactions."""
        raise NotImplementedError  # pragma: no cover - never called

    @contextlib.asynccontextmanager
    async def transaction(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AsyncIterator[AsyncEngineTransaction]:
        """Open a transaction of the engine's: commit on exit, rollback on error."""
        async with self._turn(), self._connected() as connection:
            await connection.execution_options(**_options(connection, isolation))
            handle = await connection.run_sync(self._begin, idle_s)
            await handle.open_async()
            with handle.translated():
                await adrive(handle.begin(), handle.execute_async)
            remember_begun(connection.sync_connection)
            transaction = AsyncEngineTransaction(connection, handle)
            try:
                yield transaction
                if transaction.is_open:
                    await connection.commit()
            except BaseException:
                if not transaction.is_abandoned:
                    await asyncio.shield(connection.run_sync(_roll_back))
                raise
            finally:
                transaction.is_open = False
                if transaction.is_abandoned:
                    await connection.invalidate()
        self.committed()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Open the database, and queue with other writers, in a thread: both may take a while."""
        turn = self.underneath.turn_to_write()

        def begin() -> None:
            self.open()
            turn.__enter__()

        beginning = asyncio.ensure_future(self._threads.run(begin))
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(lambda done: done.exception() or turn.__exit__(None, None, None))
            raise
        try:
            yield
        finally:
            turn.__exit__(None, None, None)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator["AsyncConnection"]:
        connection = await self._engine.connect()
        try:
            yield connection
        finally:
            await asyncio.shield(connection.close())
