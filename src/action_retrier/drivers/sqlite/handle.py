"""The user's own ``sqlite3.Connection``, with whatever transaction it holds."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from ..._clock import Clock
from ..._statements import Op, Rows, Statement, drive
from ...errors import InvalidContext
from .. import Colour
from .connection import execute, is_open, translated
from .schema import found_version, migrate, newest_version, read_meta

T = TypeVar("T")

_SAVEPOINT = "action_retrier_call"


class ConnectionHandle:
    """Runs operations on a connection of the user's; it commits, or does not, when the user does."""

    colour: Colour = "sync"

    def __init__(
        self, connection: sqlite3.Connection, *, path: Path, installation: str | None, clock: Clock, writes: bool
    ) -> None:
        self._connection = connection
        self._path = path
        self._clock = clock
        self._is_empty = False  # there are no tables yet
        if not is_open(connection):
            raise InvalidContext(problem="ctx is a sqlite3.Connection that is closed", remedy="pass one that is open")
        try:
            with translated(path):
                self._check_database(installation, writes=writes)
                if writes:
                    self._begin()
        except sqlite3.ProgrammingError as error:
            # Used in another thread than the one it was made in, for instance.
            raise InvalidContext(
                problem=f"ctx is a sqlite3.Connection that cannot be used here ({error})",
                remedy="make the call where the connection may be used",
            ) from error

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return self._connection.in_transaction

    def _check_database(self, installation: str | None, *, writes: bool) -> None:
        found = read_meta(self._connection, "installation")
        if found is not None and (not self._is_our_file() if installation is None else found != installation):
            raise InvalidContext(
                problem="ctx is a connection to another database than the app's",
                remedy=f"pass a connection to {self._path}",
            )
        if found is None and (installation is not None or not self._is_our_file()):
            raise InvalidContext(
                problem="ctx is a connection to a database in which this app has no tables",
                remedy=f"pass a connection to {self._path}",
            )
        if found is None and writes:
            # The very first use of this database. The tables are made in the user's transaction,
            # which may hold the only lock there is, and go with it if it is rolled back.
            self._begin()
            migrate(self._connection)
        elif found is None:
            self._is_empty = True
        elif found_version(self._connection) < newest_version():
            raise InvalidContext(
                problem="the tables that ctx leads to are of an older version",
                remedy="open the app, or run `action-retrier migrate`, before the transaction begins",
            )

    def _is_our_file(self) -> bool:
        cursor = self._connection.cursor()
        cursor.row_factory = None
        try:
            files = [row[2] for row in cursor.execute("PRAGMA database_list").fetchall() if row[1] in {"main", b"main"}]
        finally:
            cursor.close()
        name = files[0].decode() if files and isinstance(files[0], bytes) else (files[0] if files else "")
        with contextlib.suppress(OSError):
            return bool(name) and Path(name).samefile(self._path)
        return False

    def _begin(self) -> None:
        """Begin what the user has not begun yet, the way that is allowed to write."""
        connection = self._connection
        if connection.in_transaction:
            return
        # Python 3.12 has an attribute for it; before, and by default, an isolation level of None means autocommit.
        autocommit = getattr(connection, "autocommit", -1)
        if autocommit is True or (autocommit == -1 and connection.isolation_level is None):
            raise InvalidContext(
                problem="ctx is a sqlite3.Connection in autocommit mode with no transaction open",
                remedy="begin one first (BEGIN IMMEDIATE), or pass the app to have the call commit by itself",
            )
        connection.execute("BEGIN IMMEDIATE")

    async def run(self, op: Op[T]) -> T:
        """Run *op*, here: a sqlite3.Connection has no other colour."""
        return self.run_sync(op)

    def run_sync(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        if self._is_empty:
            # Nothing has been started yet, and a read is no reason to write: it finds what an empty schema has.
            with contextlib.closing(sqlite3.connect(":memory:")) as empty:
                migrate(empty)
                return drive(op, lambda statement: execute(empty, statement, self._clock.now_us()))
        with translated(self._path), self._savepoint():
            return drive(op, self._execute)

    def _execute(self, statement: Statement) -> Rows:
        return execute(self._connection, statement, self._clock.now_us())

    @contextlib.contextmanager
    def _savepoint(self) -> Iterator[None]:
        connection = self._connection
        if not connection.in_transaction:  # a read in autocommit mode
            yield
            return
        connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            yield
        except BaseException:
            if connection.in_transaction:
                connection.execute(f"ROLLBACK TO {_SAVEPOINT}")
                connection.execute(f"RELEASE {_SAVEPOINT}")
            raise
        connection.execute(f"RELEASE {_SAVEPOINT}")
