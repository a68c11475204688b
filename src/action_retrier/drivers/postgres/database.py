"""A PostgreSQL database: opening it, reading, writing, and looking after it."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import psycopg

from ..._clock import Clock
from ..._endings import Ending
from ..._statements import Op, drive
from ..._threads import DaemonThreads
from ...errors import DatabaseUnavailable, SchemaMismatch
from .. import IDLE_S, Colour, Executor, Isolation, mask_password
from ..handle import find
from .commits import (
    PATIENCE_S,
    Lending,
    and_then,
    begin,
    begin_async,
    can_mark,
    commit,
    commit_async,
    resolve,
)
from .connection import (
    CALL_S,
    LOCKED_CALL_S,
    WAIT_FOR_LOCKS,
    connect,
    is_pooled,
    is_transient,
    may_pass,
    tell,
    tell_async,
    translated,
)
from .deadlines import deadlines
from .doubt import CommitInDoubt, Mark
from .guarded import AsyncUserConnection, UserConnection
from .handle import find as find_raw
from .leases import PostgresLeases
from .line import Line
from .listener import Listener
from .pool import Pool
from .resets import EVERYTHING, resets_known_to
from .schema import found_version, migrate, newest_version, read_meta, script
from .session import Session, told_now_us
from .transaction import PostgresTransaction
from .urls import parse

T = TypeVar("T")

_THREADS = 8
_SHORTEST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0
_READ_PATIENCE_S = 30.0
_leaked: list[object] = []  # connections of a parent process: closing one would end the parent's session


class PostgresDatabase:
    """One PostgreSQL database and one schema in it."""

    mutation_colours: frozenset[Colour] = frozenset({"async", "sync"})
    works_beside = True

    def __init__(self, url: str, *, clock: Clock, auto_migrate: bool) -> None:
        self.url = mask_password(url)
        self._target = parse(url)
        self._clock = clock
        self._auto_migrate = auto_migrate
        self._key = object()
        self._opening = threading.RLock()
        self._reset()

    def _reset(self) -> None:
        self._pid = 0
        self._writer: Session | None = None
        self._reader: Session | None = None
        self._installation: str | None = None
        self._marked = False
        self._resets = EVERYTHING
        self._pool = Pool(self._target)
        self._threads = DaemonThreads(_THREADS, "action-retrier-calls")
        self.changes = Listener(lambda heard: Line(self._target, heard=heard), self.write)
        self.leases = PostgresLeases(self._target, self.changes.line, self.read)

    @property
    def location(self) -> str:
        """Host, port and database, for people."""
        return self._target.location

    @property
    def turn(self) -> object:
        """Transactions do not wait for each other here; the app is still the wrong thing to pass inside of one."""
        return self._key

    @property
    def installation(self) -> str:
        """The id by which handles on this database are told from those on others; opens it."""
        self.open()
        assert self._installation is not None
        return self._installation

    @property
    def is_open(self) -> bool:
        """Whether it has been opened in this process, and not been closed since."""
        return self._pid == os.getpid()

    def exists(self) -> bool:
        """Tell whether there is such a database, without making one."""
        return True

    def migrate(self) -> int:
        """Create or upgrade the schema, even where `open` only checks it; return its version."""
        self._auto_migrate = True
        self.open()
        return newest_version()

    def schema_sql(self) -> str:
        """Return a script that creates what `migrate` creates. Touches nothing."""
        return script(self._target.schema)

    def open(self) -> None:
        """Connect, and create or upgrade the schema; does nothing if that has been done in this process."""
        if self._pid == os.getpid():
            return
        if self._pid:
            # We are a forked child. What the parent had open is the parent's: it is neither used nor closed.
            _leaked.append((self._writer, self._reader, self._pool, self.changes, self.leases))
            self._opening = threading.RLock()
            self._reset()
        with self._opening:
            if self._pid == os.getpid():
                return
            self._set_up()
            self._writer = Session(
                "action-retrier-writer",
                self._target,
                self._clock,
                writes=True,
                marked=self._marked,
                committed=self.changes.notify,
            )
            self._reader = Session("action-retrier-reader", self._target, self._clock, writes=False)
            self._pid = os.getpid()
            self._ending = Ending(
                self,
                partial(_let_go, (self._writer, self._reader), self._pool, self.changes, self._threads),
            )

    def _set_up(self) -> None:
        with translated(self._target), contextlib.closing(connect(self._target)) as connection:
            with deadlines.within(CALL_S, connection):
                if is_pooled(connection):
                    self._target.direct = False
                version = found_version(connection, self._target.schema)
            if version < newest_version():
                if not self._auto_migrate:
                    raise SchemaMismatch(
                        found=version,
                        needed=newest_version(),
                        remedy=f"run `action-retrier migrate --database {self.url}`, or leave auto_migrate=True",
                    )
                migrate(connection, self._target.schema)  # may wait for others, who do it
            with deadlines.within(CALL_S, connection):
                self._installation = read_meta(connection, self._target.schema, "installation")
                self._marked = can_mark(connection)
                self._resets = resets_known_to(connection)

    def close(self) -> None:
        """Let go of every connection and thread."""
        with self._opening:
            if self._pid == os.getpid():
                self._ending.now()
                self._reset()

    # Operations.

    async def read(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""
        await self._open_async()
        assert self._reader is not None
        result: T = await self._reader.run(make, _READ_PATIENCE_S)
        return result

    def read_sync(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""
        self.open()
        assert self._reader is not None
        result: T = self._reader.run_sync(make, _READ_PATIENCE_S)
        return result

    async def write(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:
        """Run an operation in a transaction of its own, together with its neighbours unless *apart*."""
        await self._open_async()
        if apart:
            return await self._threads.run(lambda: self._write_apart(make))
        assert self._writer is not None
        result: T = await self._writer.run(make, patience_s)
        return result

    def write_sync(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:
        """Run an operation in a transaction of its own, together with its neighbours unless *apart*."""
        self.open()
        if apart:
            return self._write_apart(make)
        assert self._writer is not None
        result: T = self._writer.run_sync(make, patience_s)
        return result

    def _write_apart(self, make: Callable[[], Op[T]]) -> T:
        """Write on a connection of its own; again, while others disturb it or the server cannot be reached."""
        give_up_at = time.monotonic() + PATIENCE_S
        pause_s = _SHORTEST_PAUSE_S
        while True:
            try:
                with self._transaction_sync("read committed", lock_timeout=True) as transaction:
                    return drive(make(), transaction.execute_sync)
            except (psycopg.Error, DatabaseUnavailable) as error:
                # A COMMIT of which nobody knows is not done again: a cancel that has happened would then deny it.
                may_help = is_transient(error) or (may_pass(error) and not isinstance(error.__cause__, CommitInDoubt))
                if not may_help or time.monotonic() > give_up_at:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    @contextlib.asynccontextmanager
    async def transaction(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AsyncIterator[PostgresTransaction]:
        """Open a transaction for user code: commit on exit, rollback on error."""
        await self._open_async()
        lending = Lending(idle_s, self._resets)

        async def begin_here(connection: AsyncUserConnection) -> Mark | None:
            with translated(self._target), deadlines.within(CALL_S, connection):
                return await begin_async(connection, isolation, marked=self._marked, lending=lending)

        async with self._pool.begun_async(begin_here) as (connection, mark):
            transaction = PostgresTransaction(connection, self._target, self._now_us, lending)
            try:
                yield transaction
                if transaction.is_open:
                    await transaction.pay()
            except BaseException:
                if transaction.is_open:  # else somebody's thread may still be using what has been abandoned
                    transaction.is_open = False
                    with contextlib.suppress(psycopg.Error), deadlines.within(CALL_S, connection):
                        await tell_async(connection, and_then("ROLLBACK", transaction.to_release))
                raise
            if not transaction.is_open:
                return  # it was abandoned, and went with its connection
            transaction.is_open = False
            try:
                with translated(self._target), deadlines.within(CALL_S, connection):
                    await commit_async(connection, self._target, mark, also=transaction.to_release)
            except CommitInDoubt as doubt:
                await self._threads.run(partial(self._resolve, doubt))
        self.changes.notify()

    def transaction_sync(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> contextlib.AbstractContextManager[PostgresTransaction]:
        """Open a transaction for user code: commit on exit, rollback on error."""
        return self._transaction_sync(isolation, idle_s=idle_s)

    @contextlib.contextmanager
    def _transaction_sync(
        self, isolation: Isolation, *, idle_s: float = IDLE_S, lock_timeout: bool = False
    ) -> Iterator[PostgresTransaction]:
        self.open()
        lending = Lending(idle_s, self._resets)

        def begin_here(connection: UserConnection) -> Mark | None:
            with translated(self._target), deadlines.within(CALL_S, connection):
                mark = begin(connection, isolation, marked=self._marked, lending=lending)
                if lock_timeout:
                    tell(connection, WAIT_FOR_LOCKS)
                return mark

        with self._pool.begun(begin_here) as (connection, mark):
            transaction = PostgresTransaction(
                connection,
                self._target,
                self._now_us,
                lending,
                call_s=LOCKED_CALL_S if lock_timeout else CALL_S,
            )
            try:
                yield transaction
            except BaseException:
                if transaction.is_open:
                    transaction.is_open = False
                    with contextlib.suppress(psycopg.Error), deadlines.within(CALL_S, connection):
                        tell(connection, and_then("ROLLBACK", transaction.to_release))
                raise
            if not transaction.is_open:
                return  # it was abandoned, and went with its connection
            transaction.is_open = False
            try:
                with translated(self._target), deadlines.within(CALL_S, connection):
                    commit(connection, self._target, mark, also=transaction.to_release)
            except CommitInDoubt as doubt:
                self._resolve(doubt)
        self.changes.notify()

    def _resolve(self, doubt: CommitInDoubt) -> None:
        """Return if a COMMIT that got no answer has happened, else raise `DatabaseUnavailable`."""
        resolve(doubt)
        if doubt.fate != "committed":
            raise doubt.unresolved() from doubt

    def is_transient(self, error: BaseException) -> bool:
        """Tell whether the transaction that *error* has ended may well succeed when it is done again."""
        return is_transient(error)

    def _now_us(self) -> int | None:
        return told_now_us(self._clock)

    async def _open_async(self) -> None:
        if self._pid != os.getpid():
            await asyncio.to_thread(self.open)

    def executor(self, handle: Any, *, writes: bool) -> Executor | None:
        """Return what runs operations through the user's own *handle*; None if it is no such thing."""
        return find(handle, lambda raw: find_raw(raw, self._target, self, self._now_us, writes=writes), writes=writes)

    def turn_to_write(self) -> contextlib.AbstractContextManager[None]:
        """Return nothing to wait for: the server has as many writers as it likes."""
        return contextlib.nullcontext()

    def in_user_thread(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: user code has no connections of ours but those it is lent."""
        return contextlib.nullcontext()

    def diagnose(self) -> Sequence[tuple[str, Literal["ok", "warning", "error"], str]]:
        """Check the database: (what, verdict, what was found and what to do)."""
        from .diagnosis import diagnose  # noqa: PLC0415 - only the doctor needs it

        return diagnose(self._target)


def _let_go(sessions: Sequence[Session], pool: Pool, changes: Listener, threads: DaemonThreads) -> None:
    """Let go of connections and threads: on close, when the database is forgotten, or when the interpreter ends."""
    for session in sessions:
        session.close()
    pool.close()
    changes.line.close()
    threads.close()
