"""Connections, how statements run on them, and what their errors mean."""

import re
import sqlite3
import time
from functools import cache
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ..._statements import Rows, Statement
from ...errors import DatabaseUnavailable

BUSY_TIMEOUT_S = 30
ISOLATION: Final = "IMMEDIATE"
_LOOKS = 50  # wait for a fiftieth of the time that it has taken already
_SHORTEST_LOOK_S = 0.001
_LONGEST_LOOK_S = 0.005  # each look costs some 50 microseconds of CPU
OLDEST_SQLITE = (3, 35, 0)  # RETURNING, UPDATE FROM, MATERIALIZED

_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space; nothing of this was written",
    sqlite3.SQLITE_READONLY: "the file or its directory is read-only: check its owner and mode",
    sqlite3.SQLITE_CANTOPEN: "check that the directory exists and may be written to",
    sqlite3.SQLITE_PERM: "check the file's owner and mode",
    sqlite3.SQLITE_IOERR: "the disk or file system reported an error; nothing of this was written",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: stop the workers and restore a backup; nothing repairs it by itself",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database: check the path",
    sqlite3.SQLITE_PROTOCOL: "the file could not be locked: is it on a network file system? SQLite needs a local one",
}


@cache
def _prepared(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a statement, with its parameters numbered, which are bound faster so, and their names."""
    text = (resources.files("action_retrier") / "_sql" / "sqlite" / f"{name}.sql").read_text("utf-8")
    text = re.sub(r"--.*", "", text).strip()
    names = tuple(dict.fromkeys(re.findall(r":(\w+)", text)))
    return re.sub(r":(\w+)", lambda found: f"?{names.index(found[1]) + 1}", text), names


def looks_where_it_is(statement: Statement) -> bool:
    """Tell whether *statement* can be told to which installation a handle has to lead."""
    return "installation" in _prepared(statement.name)[1]


def connect(path: Path, *, writes: bool, synchronous: str) -> sqlite3.Connection:
    """
    Open a connection of ours, in manual transaction mode and usable from any thread.

    Never sets ``mmap_size``: a mapped file turns another process's truncation into a SIGBUS.
    """
    # Our transactions are begun explicitly. On the writing connection a level is set all the same: where user code
    # makes SQLite roll back (INSERT OR ROLLBACK), Python then begins a transaction before the next write instead of
    # letting it commit by itself, and that BEGIN is denied by the guard.
    connection = sqlite3.connect(
        path,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=ISOLATION if writes else None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        # The holder of the gate checkpoints, see `writer`: never inside somebody's commit.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        if not writes:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def begin_immediate(connection: sqlite3.Connection, *, waits: bool = True) -> bool:
    """
    Begin a write transaction on a connection that does not wait by itself, as soon as nobody else writes.

    Returns:
        Whether it has begun: always, unless it *waits* for nobody.

    SQLite's own way to wait looks ten times a second in the end, and loses the lock to whoever
    looks more often: beside six programs that write without a pause, that took 20 s. Only the
    holder of the gate waits here, so it can afford to look all the time.
    """
    begun_at = time.monotonic()
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            waited_s = time.monotonic() - begun_at
            code = error.sqlite_errorcode
            if code & 0xFF != sqlite3.SQLITE_BUSY or code == sqlite3.SQLITE_BUSY_SNAPSHOT or waited_s > BUSY_TIMEOUT_S:
                raise
            if not waits:
                return False
            time.sleep(min(max(waited_s / _LOOKS, _SHORTEST_LOOK_S), _LONGEST_LOOK_S))
        else:
            return True


def execute(
    connection: sqlite3.Connection, statement: Statement, now_us: int, *, installation: str | None = None
) -> Rows:
    """
    Run one statement on a cursor of our own, whatever row or text factory the connection has.

    Args:
        installation: Where the connection has to lead, for a statement that looks by itself; None if that is known.

    Raises:
        sqlite3.Error: As it is; `translated` makes it one of ours.
    """
    text, names = _prepared(statement.name)
    cursor = connection.cursor()
    cursor.row_factory = None
    text_factory = connection.text_factory
    if text_factory is not str:
        connection.text_factory = str
    try:
        told: dict[str, Any] = {"now": now_us, "installation": installation, **statement.parameters}
        if statement.rows:
            written = []
            for row in statement.rows:
                told.update(row)
                if cursor.execute(text, [told[name] for name in names]).rowcount:
                    written.append(dict(row))
            return written
        found = cursor.execute(text, [told[name] for name in names]).fetchall()
        if not found:
            return []
        columns = [column[0] for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in found]
    finally:
        cursor.close()
        if text_factory is not str:
            connection.text_factory = text_factory


class translated:  # noqa: N801 - a context manager, that each call enters: a generator takes three times as long
    """Turn what SQLite says of the database, not of a statement, into `DatabaseUnavailable`."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error):
            ours = explain(error, self._path)
            if ours is not None:
                raise ours from error


def explain(error: sqlite3.Error, path: Path) -> DatabaseUnavailable | None:
    """Return what *error* means, judged by its code; None if it does not speak of the database."""
    extended = getattr(error, "sqlite_errorcode", None)
    if extended is None:
        return None
    code = extended & 0xFF
    if extended == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return DatabaseUnavailable(
            problem=f"{path} was written by somebody else after this transaction had read it",
            remedy="begin transactions that will write with BEGIN IMMEDIATE: SQLite cannot let one that has read an "
            "older state write, however long it waits. Roll it back and repeat it",
        )
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return DatabaseUnavailable(
            problem=f"{path} is locked: another connection has held its write lock for too long",
            remedy="keep write transactions short, and begin them with BEGIN IMMEDIATE: one that reads first and "
            "writes later is refused at once if somebody else is writing",
        )
    remedy = _REMEDIES.get(code)
    return None if remedy is None else DatabaseUnavailable(problem=f"{path}: {error}", remedy=remedy)


def is_open(connection: sqlite3.Connection) -> bool:
    """Tell whether *connection* has not been closed."""
    try:
        connection.total_changes  # noqa: B018 - asking is the test
    except sqlite3.ProgrammingError:
        return False
    return True
