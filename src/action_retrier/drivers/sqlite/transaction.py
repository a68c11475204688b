"""A transaction of ours that user code borrows, and the guard that keeps it ours."""

import contextlib
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from ..._clock import Clock
from ..._statements import Op, Rows, Statement, adrive, drive
from .. import LENT, Colour
from .connection import ISOLATION, execute, translated

T = TypeVar("T")
Decision = Literal["commit", "rollback", "abandon"]

_OURS = "action_retrier_"
# Their texts wait in the statement cache, compiled: user code must not be able to write the same.
_NAME = f"{_OURS}{secrets.token_hex(8)}"
_SAVEPOINT, _ROLLBACK_TO, _RELEASE = f"SAVEPOINT {_NAME}", f"ROLLBACK TO {_NAME}", f"RELEASE {_NAME}"
# What user code sets on the connection outlasts the transaction, and others write through it then.
_OUR_PRAGMAS = frozenset(
    {
        "busy_timeout",
        "ignore_check_constraints",
        "journal_mode",
        "locking_mode",
        "mmap_size",
        "query_only",
        "read_uncommitted",
        "synchronous",
        "temp_store",
        "wal_autocheckpoint",
        "wal_checkpoint",
        "writable_schema",
    }
)
_TEMPORARY = frozenset(
    {
        sqlite3.SQLITE_CREATE_TEMP_INDEX,
        sqlite3.SQLITE_CREATE_TEMP_TABLE,
        sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_VIEW,
    }
)
_EXPEL_TRIES = 100
_EXPEL_PAUSE_S = 0.01


class Guard:
    """
    SQLite's authorizer on the writing connection: user code may do anything but end the transaction.

    It is asked when a statement is compiled. Our own COMMIT and ROLLBACK go through the
    connection's methods, which compile anew each time, so that none of them waits in the
    statement cache for user code to find.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._attempts: list[str] | None = None  # a list while user code holds the connection
        connection.set_authorizer(self._authorize)

    def _authorize(self, action: int, what: str | None, name: str | None, *_: object) -> int:
        if self._attempts is None:
            return sqlite3.SQLITE_OK
        if not self._connection.in_transaction:
            # It has ended behind everybody's back (INSERT OR ROLLBACK): what follows would commit by itself.
            self._attempts.append("go on after a rollback")
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_TRANSACTION:
            self._attempts.append(str(what))
            return sqlite3.SQLITE_DENY
        sets_ours = action == sqlite3.SQLITE_PRAGMA and name is not None and str(what).lower() in _OUR_PRAGMAS
        hides_ours = action in _TEMPORARY and str(what).startswith(_OURS)
        if sets_ours or hides_ours:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_SAVEPOINT and str(name).startswith(_OURS):
            self._attempts.append(f"{what} {name}")
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    @contextlib.contextmanager
    def user_code(self) -> Iterator[list[str]]:
        """Deny transaction control inside; yields the list of what was tried."""
        outer, self._attempts = self._attempts, []
        try:
            yield self._attempts
        finally:
            self._attempts = outer

    @contextlib.contextmanager
    def our_code(self) -> Iterator[None]:
        """Allow it again inside, for a call of ours that user code makes."""
        outer, self._attempts = self._attempts, None
        try:
            yield
        finally:
            self._attempts = outer

    def expel(self) -> None:
        """Allow nothing more to whoever still holds the connection, and end the transaction."""
        self._attempts = None
        expel(self._connection)


def expel(connection: sqlite3.Connection) -> None:
    """End the transaction on *connection*, and allow nothing more to whoever still holds it."""
    for _ in range(_EXPEL_TRIES):
        connection.interrupt()
        try:
            connection.rollback()
        except sqlite3.OperationalError:
            # The statement that was interrupted has not ended yet, and ours went with it.
            time.sleep(_EXPEL_PAUSE_S)
        else:
            break
    # A new authorizer also expires the statements that are compiled already.
    connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)


class SqliteTransaction:
    """
    An open write transaction on the writing connection.

    Its borrower owns the connection until `give_back`; the writer's thread waits meanwhile.
    """

    def __init__(self, connection: sqlite3.Connection, guard: Guard, path: Path, clock: Clock) -> None:
        self._connection = connection
        self.decision: Decision = "rollback"
        self.ended: object = None
        self._guard = guard
        self._path = path
        self._clock = clock
        self._returned = threading.Event()

    @property
    def is_open(self) -> bool:
        """False once the connection has been given back."""
        return not self._returned.is_set()

    def give_back(self, decision: Decision, ended: object = None) -> None:
        """Say how the transaction ends; the writer tells *ended* when it has."""
        self.decision = decision
        self.ended = ended
        self._returned.set()

    def wait(self, timeout_s: float, warn: Callable[[], None]) -> Decision:
        """Wait in the writer's thread until it is given back; *warn* each time that takes long."""
        while not self._returned.wait(timeout_s):
            warn()
        return self.decision

    def abandon(self) -> None:
        """Roll back and take the connection away from user code that does not return."""
        self.give_back("abandon")

    async def run(self, op: Op[T]) -> T:
        """Run *op* in this transaction, here: it has the lock already and waits for nobody."""
        with self.savepoint_sync():
            return await adrive(op, self._execute)

    def run_sync(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""
        with self.savepoint_sync():
            return drive(op, self._execute_now)

    async def _execute(self, statement: Statement) -> Rows:
        return self._execute_now(statement)

    def _execute_now(self, statement: Statement) -> Rows:
        with translated(self._path):
            return execute(self._connection, statement, self._clock.now_us())

    threads = None  # user code may run in any

    def connection(self, colour: Colour) -> sqlite3.Connection:  # noqa: ARG002 - it has one
        """Return the writing connection."""
        return self._connection

    @contextlib.asynccontextmanager
    async def savepoint(self, *, op_first: bool = False) -> AsyncIterator[None]:  # noqa: ARG002 - all costs the same
        """Undo what happens inside if it raises, and nothing else."""
        with self.savepoint_sync():
            yield

    @contextlib.contextmanager
    def savepoint_sync(self) -> Iterator[None]:
        """Undo what happens inside if it raises, and nothing else."""
        self._control(_SAVEPOINT)
        try:
            yield
        except BaseException:
            # An error that made SQLite roll back took the savepoint along; the writer will notice.
            if self.is_open and self._connection.in_transaction:
                self._control(_ROLLBACK_TO)
                self._control(_RELEASE)
            raise
        self._control(_RELEASE)

    def _control(self, text: str) -> None:
        with translated(self._path), self._guard.our_code():
            self._connection.execute(text)

    @contextlib.asynccontextmanager
    async def user_code(self) -> AsyncIterator[None]:
        """Deny transaction control while user code holds the connection."""
        with self.user_code_sync():
            yield

    @contextlib.contextmanager
    def user_code_sync(self) -> Iterator[None]:
        """
        Deny transaction control while user code holds the connection.

        Raises:
            RuntimeError: On leaving, if the code tried to end the transaction, even where it
                swallowed the error: what it meant to do has not happened.
        """
        problem: BaseException | None = None
        with self._guard.user_code() as tried:
            try:
                yield
            except BaseException as error:  # noqa: BLE001 - raised again below, perhaps with a better explanation
                problem = error
        if self.is_open:
            # Whatever the code has set on the connection stays its own.
            with contextlib.suppress(sqlite3.ProgrammingError):  # it may have closed the connection
                self._connection.row_factory = None
                self._connection.text_factory = str
                if self._connection.isolation_level != ISOLATION:
                    self._connection.isolation_level = ISOLATION
        if tried:
            raise RuntimeError(
                f"user code tried to {', '.join(sorted(set(tried)))} through ctx.db: {LENT}"
            ) from problem
        if problem is not None:
            raise problem
