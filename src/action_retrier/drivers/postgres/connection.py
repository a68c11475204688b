"""Connections, how statements run on them, and what their errors mean."""

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, Final, TypeVar

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.postgres import register_default_adapters
from psycopg.postgres import types as default_types
from psycopg.rows import dict_row, tuple_row
from pydantic_core import to_json

from ..._statements import Rows, Statement
from ...errors import DatabaseUnavailable
from .doubt import CommitInDoubt
from .guarded import AsyncUserConnection, UserConnection
from .urls import Target

CALL_S: Final = 5.0
"""How long any call on a connection of ours may take before the connection is given up."""
SHORTEST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 0.5
"""
Between two tries to connect. Work goes on within two seconds of a server's return: a start may have to wait, and
its worker too.
"""
_CONNECT_S = 5
WAIT_FOR_LOCKS: Final = "SET LOCAL lock_timeout = '30s'"
"""For calls that may wait for a user's transaction, such as a second cancel of one run."""
LOCKED_CALL_S: Final = 35.0
ISOLATED: Final = "SET default_transaction_isolation = 'read committed'"
"""For a session of ours whose statements commit themselves, whatever the role's default is."""
_TCP_USER_TIMEOUT_MS = 4000
C = TypeVar("C", UserConnection, AsyncUserConnection)
AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_TRANSIENT = ("40001", "40P01")  # SQLSTATEs of a serialization failure and a deadlock
# By SQLSTATE, or the class that it begins with: what the server says of itself, and not of a statement.
_REMEDIES: dict[str, str] = {
    "08": "check that the server runs and can be reached, and the names and the password in the URL",
    "25006": "this server is read-only: name the primary in the URL, or all hosts",
    "25P03": "the server ended a transaction that stood still: look for what blocks this process",
    "25P04": "the server ended a transaction that took too long: raise its transaction_timeout",
    "28": "correct the user and the password in the URL",
    "3D000": "create the database, or correct its name in the URL",
    "3F000": "run `action-retrier migrate`, or leave auto_migrate=True",
    "42501": "grant the role USAGE on the schema and SELECT, INSERT, UPDATE and DELETE on its tables; "
    "where there is none yet, have `action-retrier migrate` run by one with CREATE on the database",
    "42P01": "run `action-retrier migrate`, or leave auto_migrate=True",
    "53100": "the server's disk is full: free some space; nothing of this was written",
    "53300": "the server has no connection left: raise max_connections or use a pooler",
    "53": "the server has run out of something: see its log",
    "55P03": "somebody's open transaction holds the row: end that one first",
    "57014": "the server cancelled it: raise its statement_timeout, or see who cancels",
    "57P": "check that the server runs and can be reached",
    "58": "the server has trouble with its files: see its log",
    "XX": "the server has an internal error: see its log",
}
# Of those, what somebody has to mend first: waiting does not help.
_LASTING = ("28", "3D000", "3F000", "42501", "42P01", "53100", "55P03")


@cache
def sql(name: str, schema: str) -> str:
    """Return the text of a statement, with ``:name`` for parameters."""
    text = (resources.files("action_retrier") / "_sql" / "postgres" / f"{name}.sql").read_text("utf-8")
    text = re.sub(r"--.*", "", text).replace("{channel}", channel(schema))
    return text.replace("{schema}", schema).strip().removesuffix(";")


def channel(schema: str) -> str:
    """Return the name of the channel on which starts are told."""
    return f"action_retrier.{schema}"[:63]


@cache
def parameters(name: str, schema: str) -> tuple[str, ...]:
    """Return the names of a statement's parameters, each once."""
    return tuple(dict.fromkeys(re.findall(r"(?<!:):(\w+)", sql(name, schema))))


@cache
def query(name: str, schema: str) -> bytes:
    """Return a statement the way psycopg takes it."""
    return re.sub(r"(?<!:):(\w+)", r"%(\1)s", sql(name, schema).replace("%", "%%")).encode()


@cache
def numbered(name: str, schema: str) -> bytes:
    """Return a statement the way the server takes it."""
    places = {parameter: f"${at}" for at, parameter in enumerate(parameters(name, schema), 1)}
    return re.sub(r"(?<!:):(\w+)", lambda found: places[found[1]], sql(name, schema)).encode()


def given(statement: Statement, schema: str, now_us: int | None) -> dict[str, Any]:
    """Return what a statement is sent with: the instant that a test wants, or NULL for the database's own."""
    told = {"now": now_us, **statement.parameters}
    if statement.rows:
        told["rows"] = to_json(statement.rows).decode()
    return {name: told[name] for name in parameters(statement.name, schema)}


def options(target: Target) -> dict[str, Any]:
    """Return what our connections are opened with, beside what the URL says."""
    found = {
        "autocommit": True,  # transactions are begun and ended explicitly
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": _TCP_USER_TIMEOUT_MS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "application_name": "action-retrier",
        "target_session_attrs": "read-write",
    }
    named = psycopg.conninfo.conninfo_to_dict(target.conninfo)
    found = {name: value for name, value in found.items() if name not in named}
    found["client_encoding"] = "utf8"  # whatever the environment says: JSON is
    if not target.direct:
        found["prepare_threshold"] = None  # a pooler hands each transaction to another session
    return found


class Connection(psycopg.Connection[Any]):
    """
    A connection of ours, which no user sees.

    Attributes:
        prepared: The names of the statements that we have prepared on it.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.prepared: set[bytes] = set()


def connect(target: Target) -> Connection:
    """Open a connection of ours. Raises `DatabaseUnavailable`."""
    with translated(target):
        connection = Connection.connect(target.conninfo, **options(target), row_factory=dict_row)
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {"UTF8", None}:
        connection.close()
        raise DatabaseUnavailable(
            problem=f"{target.location}: its encoding is {encoding}, which cannot store all that JSON can carry",
            remedy="use a database that was created with ENCODING 'UTF8'",
        )
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # of its blocks, whatever the role's default is
    return connection


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether a pooler stands between us and the server, which hands each transaction to another session."""
    (row,) = connection.execute("SELECT pg_catalog.pg_backend_pid() AS pid").fetchall()
    return bool(row["pid"] != connection.info.backend_pid)


def connect_for_user(target: Target) -> UserConnection:
    """Open a connection that user code may receive. Raises `DatabaseUnavailable`."""
    with translated(target):
        return _with_own_threshold(UserConnection.connect(target.conninfo, **options(target)))


async def connect_for_user_async(target: Target) -> AsyncUserConnection:
    """Open a connection that user code may receive. Raises `DatabaseUnavailable`."""
    with translated(target):
        return _with_own_threshold(await AsyncUserConnection.connect(target.conninfo, **options(target)))


def _with_own_threshold(connection: C) -> C:
    connection.own_threshold = connection.prepare_threshold
    return connection


_ADAPTERS: Final = AdaptersMap(types=default_types)
register_default_adapters(_ADAPTERS)


class Cursor(psycopg.Cursor[Any]):
    """A cursor of ours: rows are as we know them, whatever anybody has set on the connection or on psycopg."""

    @property
    def adapters(self) -> AdaptersMap:
        """How values come and go."""
        return _ADAPTERS


class AsyncCursor(psycopg.AsyncCursor[Any]):
    """A cursor of ours: rows are as we know them, whatever anybody has set on the connection or on psycopg."""

    @property
    def adapters(self) -> AdaptersMap:
        """How values come and go."""
        return _ADAPTERS


def execute(connection: psycopg.Connection[Any], statement: Statement, schema: str, now_us: int | None) -> Rows:
    """Run one statement on a cursor of our own, whatever row factory the connection has."""
    with Cursor(connection, row_factory=dict_row) as cursor:
        cursor.execute(query(statement.name, schema), given(statement, schema, now_us))
        return cursor.fetchall() if cursor.description is not None else []


async def execute_async(
    connection: psycopg.AsyncConnection[Any], statement: Statement, schema: str, now_us: int | None
) -> Rows:
    """Run one statement on a cursor of our own, whatever row factory the connection has."""
    async with AsyncCursor(connection, row_factory=dict_row) as cursor:
        await cursor.execute(query(statement.name, schema), given(statement, schema, now_us))
        return await cursor.fetchall() if cursor.description is not None else []


def tell(connection: psycopg.Connection[Any], text: str) -> None:
    """Run what has no parameters and no rows, perhaps several statements, whatever is set on the connection."""
    with Cursor(connection, row_factory=tuple_row) as cursor:
        cursor.execute(text.encode(), prepare=False)


async def tell_async(connection: psycopg.AsyncConnection[Any], text: str) -> None:
    """Run what has no parameters and no rows, perhaps several statements, whatever is set on the connection."""
    async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(text.encode(), prepare=False)


def is_transient(error: BaseException | None) -> bool:
    """
    Tell whether the same transaction, done again, may well succeed.

    Judged by SQLSTATE, whichever client library has raised it, and whichever has wrapped it.
    """
    seen: set[int] = set()  # causes of causes may go round in circles: they are users' too
    while error is not None and id(error) not in seen:
        states = (getattr(error, name, None) for name in ("sqlstate", "pgcode"))
        if any(state in _TRANSIENT for state in states) or _was_rolled_back(error):
            return True
        seen.add(id(error))
        error = getattr(error, "orig", None) or error.__cause__
    return False


def _was_rolled_back(error: BaseException) -> bool:
    return isinstance(error, CommitInDoubt) and error.fate == "rolled back"


def may_pass(error: BaseException) -> bool:
    """Tell whether what made the database unavailable may end by itself."""
    cause = error.__cause__ if isinstance(error, DatabaseUnavailable) else error
    return isinstance(cause, psycopg.Error) and not (cause.sqlstate or "").startswith(_LASTING)


@contextlib.contextmanager
def translated(target: Target) -> Iterator[None]:
    """Turn what the server says of itself, not of a statement, into `DatabaseUnavailable`."""
    try:
        yield
    except psycopg.Error as error:
        ours = explain(error, target)
        if ours is None:
            raise
        raise ours from error


def explain(error: psycopg.Error, target: Target) -> DatabaseUnavailable | None:
    """Return what *error* means, judged by its class and SQLSTATE; None if it does not speak of the database."""
    if error.sqlstate is not None:
        remedy = next((words for state, words in _REMEDIES.items() if error.sqlstate.startswith(state)), None)
    elif isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        remedy = _REMEDIES["08"]  # it comes from libpq: there is no connection, or not any more
    else:
        remedy = None
    if remedy is None:
        return None
    return DatabaseUnavailable(problem=f"{target.location}: {_first_line(error)}", remedy=remedy)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
