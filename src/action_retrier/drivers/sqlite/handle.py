"""The user's own connection to SQLite, with whatever transaction it holds."""

import contextlib
import sqlite3
from abc import abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ..._clock import Clock
from ..._statements import Op, Rows, Statement, drive, finished, resumed
from ...errors import InvalidContext
from .. import Colour
from ..handle import Control, Handle, libraries
from .connection import execute, is_open, looks_where_it_is, translated
from .schema import migrate, migration_texts, newest_version, refuse_newer
from .transaction import expel

T = TypeVar("T")


class _Translated(translated):
    """Likewise, and what it says of a table that is not there."""

    __slots__ = ("_handle",)

    def __init__(self, handle: "SqliteHandle") -> None:
        super().__init__(handle.home.path)
        self._handle = handle

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle.is_looking:
            if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                raise self._handle.no_tables() from error
            if isinstance(error, sqlite3.ProgrammingError):
                raise self._handle.unusable(error) from error
        super().__exit__(kind, error, trace)


LEGACY = -1
"""Of the attribute ``autocommit``, which Python 3.12 brought: transactions are begun as `isolation_level` says."""


class Home(Protocol):
    """What a handle wants to know of the database that it should lead to."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def known_installation(self) -> str | None:
        """The id by which it is told from others; None before it has been opened here."""


def find(handle: object, home: Home, clock: Clock, *, writes: bool) -> "SqliteHandle | None":
    """Return what runs operations through *handle*; None if it is no connection to SQLite."""
    if isinstance(handle, sqlite3.Connection):
        return ConnectionHandle(handle, home, clock, writes=writes)
    if "aiosqlite" in libraries(handle):
        from .aiosqlite_handle import AiosqliteHandle, is_connection  # noqa: PLC0415 - the user has imported the library

        if is_connection(handle):
            return AiosqliteHandle(handle, home, clock, writes=writes)
    return None


class SqliteHandle(Handle):
    """What handles of either client library have."""

    errors = (sqlite3.Error,)
    undoes_statements = True
    kind: str
    """What it is called in errors."""

    def __init__(self, home: Home, clock: Clock, *, writes: bool) -> None:
        super().__init__(writes=writes)
        self.home = home
        self._clock = clock
        self._is_empty = False  # there are no tables yet
        self._has_begun = False
        self._is_alone = self._looks_later = False
        self._expected: str | None = None  # what a statement that looks where it is has to find
        self.is_looking = False
        """Whether the statement is under way that tells where the handle leads."""

    def translated(self) -> contextlib.AbstractContextManager[None]:
        """Turn what SQLite says of the database into one of our errors."""
        return _Translated(self)

    def no_tables(self) -> InvalidContext:
        """Return what is said where the tables are not there."""
        return InvalidContext(
            problem="ctx is a connection to a database in which this app has no tables",
            remedy=f"pass a connection to {self.home.path}",
        )

    def unusable(self, error: sqlite3.ProgrammingError) -> InvalidContext:
        """Return what is said of a connection that cannot be used here: another thread has made it, for instance."""
        return InvalidContext(
            problem=f"ctx is {self.kind} that cannot be used here ({error})",
            remedy="make the call where the connection may be used",
        )

    @property
    def _is_guarded(self) -> bool:
        return self.in_transaction  # a read, too, is undone: one of several statements sees one state

    @property
    @abstractmethod
    def begins(self) -> str:
        """How transactions are begun: ``explicitly`` (autocommit), ``implicitly``, or ``always`` (one is open)."""

    def begin(self) -> Op[None]:
        """Check that it leads to our database, and begin what the user has not begun yet, as a writer."""
        # Only now: whoever had the connection before us may have ended its transaction.
        self._looks_later = self._is_alone and self._is_writer_already and not self._has_begun
        if not self._looks_later:
            yield from self._look()

    @property
    def _is_writer_already(self) -> bool:
        """Whether nothing is to be begun, so that a statement may look by itself where it is."""
        return self._writes and self.in_transaction and self.home.known_installation is not None

    def _look(self) -> Op[None]:
        if self._has_begun:
            return
        home = self.home
        if self._is_writer_already:
            # Before anything is read: what a reader has seen, another writer's commit outdates, and it may not write.
            self.is_looking = True
            try:
                yield Statement("take_write_lock")
            finally:
                self.is_looking = False
        is_there = (yield Statement("select_table", {"name": "action_retrier_meta"}))[0]["is_there"]
        meta = {row["key"]: row["value"] for row in (yield Statement("select_meta"))} if is_there else {}
        found, expected = meta.get("installation"), home.known_installation
        if found is not None and (expected != found if expected is not None else not (yield from self._is_our_file())):
            raise InvalidContext(
                problem="ctx is a connection to another database than the app's",
                remedy=f"pass a connection to {home.path}",
            )
        if found is None and (expected is not None or not (yield from self._is_our_file())):
            raise self.no_tables()
        version = int(meta.get("version", 0))
        refuse_newer(version)
        if found is not None and version < newest_version():
            raise InvalidContext(
                problem="the tables that ctx leads to are of an older version",
                remedy="open the app, or run `action-retrier migrate`, before the transaction begins",
            )
        self._is_empty = found is None and not self._writes
        if self._writes:
            yield from self._begin_as_writer()
            # The very first use of this database: the tables are made in the user's transaction,
            # which may hold the only lock there is, and go with it if it is rolled back.
            for text in migration_texts() if found is None else ():
                yield Control(text)
        self._has_begun = True

    def _is_our_file(self) -> Op[bool]:
        name = (yield Statement("select_file"))[0]["file"]
        with contextlib.suppress(OSError):
            return bool(name) and Path(name).samefile(self.home.path)
        return False

    def _begin_as_writer(self) -> Op[None]:
        if self.in_transaction:
            return
        if self.begins == "explicitly":
            raise InvalidContext(
                problem=f"ctx is {self.kind} in autocommit mode with no transaction open",
                remedy="begin one first (BEGIN IMMEDIATE), or pass the app to have the call commit by itself",
            )
        yield Control("BEGIN IMMEDIATE")

    async def run(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        return await super().run(self._adapted(op, self._first(op)))

    def run_sync(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        return super().run_sync(self._adapted(op, self._first(op)))

    def _first(self, op: Op[Any]) -> Statement | StopIteration:
        """Return what *op* sends first, or how it ends; note whether that is all, and looks by itself where it is."""
        try:
            first = next(op)
        except StopIteration as end:
            return end
        self._is_alone = first.is_last and looks_where_it_is(first)  # three questions would take longer than it does
        return first

    def _adapted(self, op: Op[T], first: Statement | StopIteration) -> Op[T]:
        """Go on with *op* from its *first* statement, which may have to find out where it is."""
        if isinstance(first, StopIteration):
            result: T = first.value
            return result
        if self._is_empty:
            return self._on_an_empty_schema(op, first)
        if self._looks_later:
            self.is_looking, self._expected = True, self.home.known_installation
            try:
                rows = yield first
            finally:
                self.is_looking, self._expected = False, None
            if rows:
                self._has_begun = True
                return finished(op, rows)
            yield from self._look()
        return (yield from resumed(op, first))

    def _on_an_empty_schema(self, op: Op[T], first: Statement) -> T:
        """Let a read before there are tables find what an empty schema has: it is no reason to write."""
        with contextlib.closing(sqlite3.connect(":memory:")) as empty:
            migrate(empty)
            return drive(op, lambda statement: execute(empty, statement, self._clock.now_us()), first)


class ConnectionHandle(SqliteHandle):
    """The standard library's ``sqlite3.Connection``; it has no colour of its own."""

    colours: frozenset[Colour] = frozenset({"async", "sync"})
    kind = "a sqlite3.Connection"
    waits = False

    def __init__(self, connection: sqlite3.Connection, home: Home, clock: Clock, *, writes: bool) -> None:
        super().__init__(home, clock, writes=writes)
        self._connection = connection
        if not is_open(connection):
            raise InvalidContext(problem=f"ctx is {self.kind} that is closed", remedy="pass one that is open")
        if self._is_writer_already:
            return
        try:
            with self.translated():
                drive(self.begin(), self.execute)
        except sqlite3.ProgrammingError as error:
            raise self.unusable(error) from error

    @property
    def raw(self) -> sqlite3.Connection:
        """The connection."""
        return self._connection

    def alone(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Wait for nobody: no call of another task comes in between."""
        return contextlib.nullcontext()

    def alone_sync(self) -> contextlib.AbstractContextManager[object]:
        """Wait for nobody: threads that share one have to see to that themselves, as Python's documentation says."""
        return contextlib.nullcontext()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return self._connection.in_transaction

    @property
    def begins(self) -> str:
        """How transactions are begun."""
        return how_it_begins(self._connection)

    def cut(self) -> None:
        """Roll it back, whoever is using it, and allow them nothing more."""
        expel(self._connection)

    def execute(self, statement: Statement) -> Rows:
        """Run one statement on a cursor of our own."""
        if isinstance(statement, Control):
            self._connection.execute(statement.name)
            return []
        return execute(self._connection, statement, self._clock.now_us(), installation=self._expected)


def how_it_begins(connection: Any) -> str:
    """Return how Python begins transactions on a connection: explicitly, implicitly, or always."""
    autocommit = getattr(connection, "autocommit", LEGACY)
    if autocommit != LEGACY:
        return "explicitly" if autocommit else "always"
    return "explicitly" if connection.isolation_level is None else "implicitly"
