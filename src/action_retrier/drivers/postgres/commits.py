"""
Begin and commit transactions of ours, and learn what became of a COMMIT that got no answer.

A connection that dies during COMMIT leaves it open whether the server has committed. The server
knows, by the transaction's id, unless it has crashed or somebody else has taken over since: then
ids may have been given out again, and nobody can tell.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import psycopg
from psycopg.rows import tuple_row

from ..._statements import Statement
from ...config import logger
from ...errors import DatabaseUnavailable
from .. import IDLE_S, Isolation
from .connection import CALL_S, AnyConnection, AsyncCursor, Cursor, connect, execute, tell, tell_async, translated
from .deadlines import deadlines
from .doubt import CommitInDoubt, Fate, Mark
from .resets import Resets
from .urls import Target

# Then the server ends a transaction whose client it does not hear from: a partitioned one must not keep its locks.
_PROTECT: Final = "SET LOCAL idle_in_transaction_session_timeout ="
_MARK: Final = (
    "SELECT CAST(pg_catalog.pg_current_xact_id() AS text),"
    " CAST(pg_catalog.pg_postmaster_start_time() AS text),"
    " CAST((pg_catalog.pg_control_checkpoint()).checkpoint_lsn AS text)"
)
PATIENCE_S: Final = 30.0
"""How long an operation is tried again while the server cannot be reached."""
_SHORTEST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
BEGIN_READING: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
"""One state for all statements of an operation."""


def settings_as_begun(resets: Resets, idle_s: float) -> str:
    """Return what takes back, within a transaction, what user code has set in it."""
    return "; ".join((*resets.settings, f"{_PROTECT} {round(idle_s * 1000)}"))


def can_mark(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the server can be asked; some that speak PostgreSQL's language cannot."""
    try:
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(_MARK)
    except psycopg.Error:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Lending:
    """
    User code will have the transaction, or what was committed on the connection before was user code's.

    Attributes:
        idle_s: For how long it may leave it idle.
        resets: What takes back what it has set and left.
    """

    idle_s: float
    resets: Resets


def _begin_text(isolation: Isolation, *, marked: bool, lending: Lending | None) -> bytes:
    """Return what begins a transaction, in one exchange."""
    idle_s = IDLE_S if lending is None else lending.idle_s
    texts = [f"BEGIN ISOLATION LEVEL {isolation.upper()}", f"{_PROTECT} {round(idle_s * 1000)}"]
    if lending is not None:
        # What user code has set on the session, or left in it, was its own. In a transaction before ours, or else
        # default_transaction_read_only, for one, would still count for ours.
        texts = ["BEGIN", *lending.resets.settings, *lending.resets.leftovers, "COMMIT", *texts]
    return "; ".join([*texts, _MARK] if marked else texts).encode()


def begin(
    connection: psycopg.Connection[Any], isolation: Isolation, *, marked: bool, lending: Lending | None = None
) -> Mark | None:
    """Begin a transaction."""
    with Cursor(connection, row_factory=tuple_row) as cursor:
        cursor.execute(_begin_text(isolation, marked=marked, lending=lending), prepare=False)
        if not marked:
            return None
        while cursor.nextset():
            pass
        return Mark(*cursor.fetchall()[0])


async def begin_async(
    connection: psycopg.AsyncConnection[Any], isolation: Isolation, *, marked: bool, lending: Lending | None = None
) -> Mark | None:
    """Begin a transaction."""
    async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(_begin_text(isolation, marked=marked, lending=lending), prepare=False)
        if not marked:
            return None
        while cursor.nextset():
            pass
        return Mark(*(await cursor.fetchall())[0])


def commit(connection: psycopg.Connection[Any], target: Target, mark: Mark | None, *, also: Sequence[str] = ()) -> None:
    """Commit, and do in the same exchange what is to follow. Raises `CommitInDoubt`."""
    try:
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(and_then("COMMIT", also).encode(), prepare=False)
            status = cursor.statusmessage
    except psycopg.Error as error:
        if not _is_in_doubt(error, connection, also):
            if also:
                with contextlib.suppress(psycopg.Error):
                    tell(connection, "; ".join(also))
            raise
        raise CommitInDoubt(target, mark) from error
    _check(status, target)


async def commit_async(
    connection: psycopg.AsyncConnection[Any], target: Target, mark: Mark | None, *, also: Sequence[str] = ()
) -> None:
    """Commit, and do in the same exchange what is to follow. Raises `CommitInDoubt`."""
    try:
        async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(and_then("COMMIT", also).encode(), prepare=False)
            status = cursor.statusmessage
    except psycopg.Error as error:
        if not _is_in_doubt(error, connection, also):
            if also:
                with contextlib.suppress(psycopg.Error):
                    await tell_async(connection, "; ".join(also))
            raise
        raise CommitInDoubt(target, mark) from error
    _check(status, target)


def and_then(end: Literal["COMMIT", "ROLLBACK"], also: Sequence[str]) -> str:
    """Return what ends a transaction and does something more, in one exchange."""
    return "; ".join((end, *also))


def _is_in_doubt(error: psycopg.Error, connection: AnyConnection, also: Sequence[str]) -> bool:
    """
    Tell whether nobody knows how a COMMIT ended: only with the connection gone.

    Or if the exchange was canceled, by the server's timeout for one: it may have been at what follows.
    """
    return connection.closed or (bool(also) and isinstance(error, psycopg.errors.QueryCanceled))


def _check(status: str | None, target: Target) -> None:
    """Raise if a COMMIT did not: a transaction that has failed is rolled back by it."""
    if status != "COMMIT":
        raise DatabaseUnavailable(
            problem=f"{target.location}: the transaction had failed, and the server rolled it back",
            remedy="let errors of the database out of the transaction, instead of going on after them",
        )


def fate_of(connection: psycopg.Connection[Any], doubt: CommitInDoubt) -> Fate | None:
    """
    Return what became of a transaction; None: its session is still at it.

    What the server calls committed may wait for a synchronous standby that has not got it. So it
    counts once a further write has committed, which has to wait for the same.
    """
    mark, target = doubt.mark, doubt.target
    if mark is None:
        return "unknown"
    with translated(target):
        (row,) = execute(connection, Statement("select_fate", asdict(mark)), target.schema, None)
        if row["status"] == "committed":
            execute(connection, Statement("touch_meta"), target.schema, None)
    match row["status"]:
        case "committed":
            return "committed"
        case "aborted":
            return "rolled back"
        case "in progress":
            return None
    return "unknown"


def resolve(doubt: CommitInDoubt) -> None:
    """Ask until the server answers, on connections of its own, for as long as anybody would wait."""
    if doubt.mark is None:
        return  # there is nothing to ask for
    logger.warning("%s; asking what became of it", doubt)
    give_up_at = time.monotonic() + PATIENCE_S
    pause_s = _SHORTEST_PAUSE_S
    while time.monotonic() < give_up_at:
        with contextlib.suppress(DatabaseUnavailable, psycopg.Error):
            with contextlib.closing(connect(doubt.target)) as connection, deadlines.within(CALL_S, connection):
                fate = fate_of(connection, doubt)
            if fate is not None:
                doubt.fate = fate
                return
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
