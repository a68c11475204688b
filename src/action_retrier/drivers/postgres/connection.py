"""Connections, how statements run on them, and what their errors mean."""

import contextlib
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, Final

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.rows import dict_row

from ..._statements import Rows, Statement
from ...errors import DatabaseUnavailable, RetrierError
from .urls import Target

CALL_S: Final = 5.0
"""How long any call on a connection of ours may take before the connection is given up."""
_CONNECT_S = 5
_TCP_USER_TIMEOUT_MS = 4000
_IDLE_IN_TRANSACTION = "10s"  # then the server ends a transaction whose client it does not hear from
BEGIN: Final = f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = '{_IDLE_IN_TRANSACTION}'"

AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_TRANSIENT = (
    psycopg.errors.SerializationFailure,
    psycopg.errors.DeadlockDetected,
)
_UNAVAILABLE: tuple[tuple[type[psycopg.Error], str], ...] = (
    (
        psycopg.errors.ReadOnlySqlTransaction,
        "this server is read-only: name the primary, or all hosts",
    ),
    (psycopg.errors.InsufficientPrivilege, "grant the role what `action-retrier migrate --sql` needs"),
    (psycopg.errors.DiskFull, "the server's disk is full: free some space; nothing of this was written"),
    (psycopg.errors.TooManyConnections, "the server has no connection left: raise max_connections or use a pooler"),
    (psycopg.errors.InvalidCatalogName, "create the database, or correct its name in the URL"),
    (psycopg.errors.InvalidPassword, "correct the user and the password in the URL"),
    (psycopg.errors.InvalidAuthorizationSpecification, "correct the user and the password in the URL"),
    (psycopg.errors.UndefinedTable, "run `action-retrier migrate`, or leave auto_migrate=True"),
    (psycopg.errors.InvalidSchemaName, "run `action-retrier migrate`, or leave auto_migrate=True"),
)


@cache
def sql(name: str, schema: str) -> str:
    """Return the text of a statement, with ``:name`` for parameters."""
    text = (resources.files("action_retrier") / "_sql" / "postgres" / f"{name}.sql").read_text("utf-8")
    return re.sub(r"--.*", "", text).replace("{schema}", schema).strip().removesuffix(";")


@cache
def parameters(name: str, schema: str) -> tuple[str, ...]:
    """Return the names of a statement's parameters, each once."""
    return tuple(dict.fromkeys(re.findall(r"(?<!:):(\w+)", sql(name, schema))))


@cache
def query(name: str, schema: str) -> bytes:
    """Return a statement the way psycopg takes it."""
    return re.sub(r"(?<!:):(\w+)", r"%(\1)s", sql(name, schema).replace("%", "%%")).encode()


def given(statement: Statement, schema: str, now_us: int | None) -> dict[str, Any]:
    """Return what a statement is sent with: the instant that a test wants, or NULL for the database's own."""
    return {
        name: statement.parameters.get(name, now_us) if name == "now" else statement.parameters[name]
        for name in parameters(statement.name, schema)
    }


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
        "row_factory": dict_row,
    }
    named = psycopg.conninfo.conninfo_to_dict(target.conninfo)
    found = {name: value for name, value in found.items() if name not in named}
    if not target.direct:
        found["prepare_threshold"] = None  # a pooler hands each transaction to another session
    return found


def connect(target: Target) -> psycopg.Connection[dict[str, Any]]:
    """Open a connection of ours. Raises `DatabaseUnavailable`."""
    with translated(target):
        return psycopg.connect(target.conninfo, **options(target))


async def connect_async(target: Target) -> psycopg.AsyncConnection[dict[str, Any]]:
    """Open a connection of ours. Raises `DatabaseUnavailable`."""
    with translated(target):
        return await psycopg.AsyncConnection.connect(target.conninfo, **options(target))


def _default_adapters() -> AdaptersMap:
    """Return the adapters that psycopg comes with: those of a user's connection, or of all, may be the user's."""
    adapters = AdaptersMap(types=psycopg.postgres.types)
    psycopg.postgres.register_default_adapters(adapters)
    return adapters


_ADAPTERS: Final = _default_adapters()


class OurCursor(psycopg.Cursor[dict[str, Any]]):
    """A cursor that owes nothing to the connection's row factory, cursor factory and adapters."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, row_factory=dict_row)
        self._adapters = _ADAPTERS


class OurAsyncCursor(psycopg.AsyncCursor[dict[str, Any]]):
    """A cursor that owes nothing to the connection's row factory, cursor factory and adapters."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection, row_factory=dict_row)
        self._adapters = _ADAPTERS


def execute(connection: psycopg.Connection[Any], statement: Statement, schema: str, now_us: int | None) -> Rows:
    """Run one statement on a cursor of our own, whatever the connection's factories are."""
    with OurCursor(connection) as cursor:
        cursor.execute(query(statement.name, schema), given(statement, schema, now_us))
        return cursor.fetchall() if cursor.description is not None else []


async def execute_async(
    connection: psycopg.AsyncConnection[Any], statement: Statement, schema: str, now_us: int | None
) -> Rows:
    """Run one statement on a cursor of our own, whatever the connection's factories are."""
    async with OurAsyncCursor(connection) as cursor:
        await cursor.execute(query(statement.name, schema), given(statement, schema, now_us))
        return await cursor.fetchall() if cursor.description is not None else []


def check_commit(cursor: "psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]", target: Target) -> None:
    """Raise `DatabaseUnavailable` if a COMMIT did not: a transaction that has failed is rolled back by it."""
    if cursor.statusmessage != "COMMIT":
        raise DatabaseUnavailable(
            problem=f"{target.location}: the transaction had failed, and the server rolled it back",
            remedy="let errors of the database out of the transaction, instead of going on after them",
        )


def is_transient(error: BaseException) -> bool:
    """Tell whether the same transaction, done again, may well succeed."""
    return isinstance(error, _TRANSIENT)


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
    """Return what *error* means, judged by its class; None if it does not speak of the database."""
    for kind, remedy in _UNAVAILABLE:
        if isinstance(error, kind):
            return DatabaseUnavailable(problem=f"{target.location}: {_first_line(error)}", remedy=remedy)
    if isinstance(error, RetrierError) or is_transient(error):
        return None
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return DatabaseUnavailable(
            problem=f"{target.location}: {_first_line(error)}",
            remedy="check that the server runs and can be reached",
        )
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
