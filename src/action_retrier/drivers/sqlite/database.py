"""A database file: opening it, reading, writing, and looking after it."""

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..._clock import Clock
from ..._endings import Ending
from ..._statements import Op, drive
from ..._threads import DaemonThreads
from ...config import logger
from ...errors import DatabaseUnavailable, SchemaMismatch
from .. import IDLE_S, Colour, Executor, Isolation
from ..handle import find
from .changes import SqliteChanges
from .connection import OLDEST_SQLITE, connect, execute, translated
from .file import DatabaseFile
from .handle import find as find_raw
from .leases import SqliteLeases
from .locks import lock_file, used_lock_file
from .schema import found_version, migrate, newest_version, read_meta, script
from .transaction import SqliteTransaction
from .urls import parse
from .users import Users
from .writer import Writer

T = TypeVar("T")

_READERS = 4
_LOAN_PATIENCE_S = 30.0
_leaked: list[object] = []  # connections of a parent process: closing one would touch the parent's file


class SqliteDatabase:
    """One SQLite file."""

    mutation_colours: frozenset[Colour] = frozenset({"async", "sync"})
    works_beside = False

    def __init__(self, url: str, rest: str, *, clock: Clock, auto_migrate: bool) -> None:
        self.url = url
        self._path, self._synchronous = parse(url, rest)
        self._clock = clock
        self._auto_migrate = auto_migrate
        self._opening = threading.RLock()
        self._turn = self._path.resolve()
        self._was_forked_open = False
        self._reset()

    def _reset(self) -> None:
        self._pid = 0
        self._writer: Writer | None = None
        self._installation: str | None = None
        self._idle_readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._threads = DaemonThreads(_READERS, "action-retrier-reader")
        self._users = Users()
        self._users.on_fork(partial(_close_idle, self._idle_readers))
        self._file = DatabaseFile(self._path)
        self._connect_to_read = partial(_connect_to_read, self._file, self._synchronous)
        # No reference to this object: it ends what it has begun when nobody holds it any more.
        self.changes = SqliteChanges(self._path, self._connect_to_read, self._users)
        self.leases = SqliteLeases(self._path.with_name(self._path.name + "-workers"))

    @property
    def location(self) -> str:
        """The file, for people."""
        return str(self._path)

    @property
    def turn(self) -> Path:
        """The file: whichever App opens it, it has one writer."""
        return self._turn

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
        """Tell whether there is such a file, without making one."""
        return self._path.exists()

    def migrate(self) -> int:
        """Create or upgrade the schema, even where `open` only checks it; return its version."""
        self._auto_migrate = True
        self.open()
        return newest_version()

    def schema_sql(self) -> str:
        """Return a script that creates what `migrate` creates. Touches nothing."""
        return script()

    def open(self) -> None:
        """Connect, and create or upgrade the schema; does nothing if that has been done in this process."""
        if self._pid == os.getpid():
            return
        if self._pid:
            # We are a forked child. What the parent had open is the parent's: it is neither used nor closed.
            _leaked.append((self._writer, self._idle_readers, self.changes, self.leases))
            self._was_forked_open = self._users.was_forked_open
            self._opening = threading.RLock()
            self._reset()
        if self._was_forked_open:
            raise DatabaseUnavailable(
                problem=f"{self._path} was in use by a transaction when this process was forked: SQLite would "
                "believe here that it holds the locks of the parent",
                remedy="fork outside of transactions, or start processes afresh (spawn, forkserver)",
            )
        with self._opening:
            if self._pid == os.getpid():
                return
            self._prepare()
            self._writer = Writer(
                self._file,
                self._gate,
                users=self._users,
                clock=self._clock,
                synchronous=self._synchronous,
                committed=self.changes.notify,
            )
            self._pid = os.getpid()
            self._ending = Ending(self, partial(_let_go, self._writer, self.changes, self._threads, self._idle_readers))

    def close(self) -> None:
        """Let go of every connection and thread."""
        with self._opening:
            if self._pid == os.getpid():
                self._ending.now()
                self._reset()

    @property
    def _gate(self) -> Path:
        return self._path.with_name(self._path.name + "-gate")

    def _prepare(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise DatabaseUnavailable(
                problem=f"this Python has SQLite {sqlite3.sqlite_version}",
                remedy=f"use one with SQLite {'.'.join(map(str, OLDEST_SQLITE))} or later",
            )
        if not self._path.parent.is_dir():
            raise DatabaseUnavailable(
                problem=f"the directory {self._path.parent} of the database does not exist",
                remedy="create it, or correct the URL (sqlite:///relative.db, sqlite:////absolute.db)",
            )
        try:
            # Made by us, so that nobody else may read what it will hold.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise DatabaseUnavailable(
                problem=f"{self._path} cannot be created ({error.strerror})",
                remedy="check the directory's owner and mode",
            ) from error
        with self._users.using(), used_lock_file(self._gate):
            self._set_up_in_turn()

    def _set_up_in_turn(self) -> None:
        gate, owner = lock_file(self._gate), object()
        try:
            # Ten processes that open a new file at once do this one after the other: switching to WAL does not wait.
            gate.acquire(owner)
            with (
                translated(self._path),
                contextlib.closing(connect(self._path, writes=True, synchronous=self._synchronous)) as connection,
            ):
                self._set_up(connection)
            self._file.remember()
        finally:
            gate.release(owner)

    def _set_up(self, connection: sqlite3.Connection) -> None:
        version = found_version(connection)
        if version < newest_version():
            if not self._auto_migrate:
                raise SchemaMismatch(
                    found=version,
                    needed=newest_version(),
                    remedy=f"run `action-retrier migrate --database {self.url}`, or leave auto_migrate=True",
                )
            _switch_to_wal(connection)
            connection.execute("BEGIN IMMEDIATE")
            try:
                migrate(connection)
                connection.commit()
            except BaseException:
                connection.rollback()  # which does nothing where SQLite has done it by itself
                raise
            logger.info("schema version %d is in place", newest_version())
        else:
            _switch_to_wal(connection)
        self._installation = read_meta(connection, "installation")

    async def read(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""
        await self._open_async()
        return await self._threads.run(lambda: self._read(make))

    def read_sync(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""
        self.open()
        return self._read(make)

    def _read(self, make: Callable[[], Op[T]]) -> T:
        with self._users.using(), translated(self._path):
            self._file.check()
            try:
                connection = self._idle_readers.get_nowait()
            except queue.Empty:
                connection = self._connect_to_read()
            try:
                connection.execute("BEGIN")  # one state for all statements of the operation
                now = self._clock.now_us()
                result = drive(make(), lambda statement: execute(connection, statement, now))
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
                raise
            else:
                connection.commit()
            self._idle_readers.put(connection)
        return result

    async def write(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:  # noqa: ARG002 - one writer
        """Run an operation in a transaction of its own, together with its neighbours."""
        await self._open_async()
        result: T = await self._current_writer.run(make, patience_s)
        return result

    def write_sync(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:  # noqa: ARG002 - one writer
        """Run an operation in a transaction of its own, together with its neighbours."""
        self.open()
        result: T = self._current_writer.run_sync(make, patience_s)
        return result

    @contextlib.asynccontextmanager
    async def transaction(
        self,
        isolation: Isolation = "read committed",  # noqa: ARG002 - one writer
        *,
        idle_s: float = IDLE_S,  # noqa: ARG002 - its client is this process
    ) -> AsyncIterator[SqliteTransaction]:
        """Open a transaction for user code: commit on exit, rollback on error."""
        await self._open_async()
        async with self._current_writer.borrow(_LOAN_PATIENCE_S) as loan:
            yield loan

    @contextlib.contextmanager
    def transaction_sync(
        self,
        isolation: Isolation = "read committed",  # noqa: ARG002 - one writer
        *,
        idle_s: float = IDLE_S,  # noqa: ARG002 - its client is this process
    ) -> Iterator[SqliteTransaction]:
        """Open a transaction for user code: commit on exit, rollback on error."""
        self.open()
        with self._current_writer.borrow_sync(_LOAN_PATIENCE_S) as loan:
            yield loan

    def is_transient(self, error: BaseException) -> bool:  # noqa: ARG002 - one writer
        """Tell whether the transaction may well succeed when it is done again: nobody disturbs one here."""
        return False

    async def _open_async(self) -> None:
        if self._pid != os.getpid():
            await asyncio.to_thread(self.open)

    @property
    def _current_writer(self) -> Writer:
        assert self._writer is not None
        return self._writer

    @contextlib.contextmanager
    def turn_to_write(self) -> Iterator[None]:
        """Queue with other writers for a transaction on a connection that is not ours."""
        with used_lock_file(self._gate):
            gate, owner = lock_file(self._gate), object()
            try:
                gate.acquire(owner)
                with self._users.using():
                    yield
            finally:
                gate.release(owner)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def known_installation(self) -> str | None:
        """The installation's id, without opening it: the user's handle may hold the only lock."""
        return self._installation

    def executor(self, handle: Any, *, writes: bool) -> Executor | None:
        """Return what runs operations through the user's own *handle*; None if it is no such thing."""
        return find(handle, lambda raw: find_raw(raw, self, self._clock, writes=writes), writes=writes)

    def in_user_thread(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: user code has no connections of ours but those it is lent."""
        return contextlib.nullcontext()

    def diagnose(self) -> Sequence[tuple[str, Literal["ok", "warning", "error"], str]]:
        """Check the database: (what, verdict, what was found and what to do)."""
        from .diagnosis import diagnose  # noqa: PLC0415 - only the doctor needs it

        return diagnose(self._path, synchronous=self._synchronous)


def _connect_to_read(file: DatabaseFile, synchronous: str) -> sqlite3.Connection:
    file.check()  # SQLite would make one where there is none
    return connect(file.path, writes=False, synchronous=synchronous)


def _let_go(
    writer: Writer,
    changes: SqliteChanges,
    threads: DaemonThreads,
    readers: "queue.LifoQueue[sqlite3.Connection]",
) -> None:
    """Let go of connections and threads: on close, when the database is forgotten, or when the interpreter ends."""
    writer.close()
    changes.close()
    threads.close()
    _close_idle(readers)


def _close_idle(readers: "queue.LifoQueue[sqlite3.Connection]") -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            readers.get_nowait().close()


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise DatabaseUnavailable(
            problem=f"SQLite could not switch to WAL mode (it stays with {mode!r})",
            remedy="use a file on a local file system",
        )
