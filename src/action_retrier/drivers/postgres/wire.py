"""
Statements of ours on a connection of ours, spoken in libpq's own words.

What psycopg's cursors do for any query and any value is done here for the few kinds of value that our statements
have: a statement in a session of ours takes a third of the CPU, and a third of the time in which the interpreter is
held. The wait for the answer is libpq's, which no signal's handler cuts short in the midst of an exchange.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from ..._statements import Rows, Statement
from .connection import Connection, given, numbered

_OF_TYPES: Final[dict[int, Callable[[bytes], Any]]] = {
    16: lambda value: value == b"t",  # boolean
    20: int,  # bigint
    23: int,  # integer
    701: float,  # double precision
}
_FINE: Final = (
    int(ExecStatus.TUPLES_OK),
    int(ExecStatus.COMMAND_OK),
)  # a set would call on the enumeration's slow hash


def execute(connection: Connection, statement: Statement, schema: str, now_us: int | None) -> Rows:
    """Run one statement and return its rows. Where nothing may be prepared, it is planned anew each time."""
    pgconn = connection.pgconn
    text, values = numbered(statement.name, schema), values_of(statement, schema, now_us)
    if connection.prepare_threshold is None:
        return rows_of(pgconn, pgconn.exec_params(text, values))
    name = name_of(statement.name, schema)
    if name not in connection.prepared:
        checked(pgconn, pgconn.prepare(name, text))
        connection.prepared.add(name)
    return rows_of(pgconn, pgconn.exec_prepared(name, values))  # type: ignore[arg-type] # its protocol forgets NULL


def send_prepared(connection: Connection, statement: Statement, schema: str, now_us: int | None) -> None:
    """Send a statement, and do not wait for its answer."""
    pgconn = connection.pgconn
    name = name_of(statement.name, schema)
    if name not in connection.prepared:  # once a statement and a connection
        checked(pgconn, pgconn.prepare(name, numbered(statement.name, schema)))
        connection.prepared.add(name)
    pgconn.send_query_prepared(name, values_of(statement, schema, now_us))


def ask(connection: Connection, text: str) -> PGresult:
    """Run what has no parameters, perhaps several statements, and return the result of the last one."""
    pgconn = connection.pgconn
    return checked(pgconn, pgconn.exec_(text.encode()))


@cache
def name_of(name: str, schema: str) -> bytes:
    """Return under which name a statement is prepared."""
    return f"{schema}.{name}".encode()


def values_of(statement: Statement, schema: str, now_us: int | None) -> list[bytes | None]:
    """Return the parameters of a statement, in order, as text."""
    return [_encode(value) for value in given(statement, schema, now_us).values()]


def _encode(value: object) -> bytes | None:
    if value is None:
        return None
    encoded = str(value).encode()
    if b"\0" in encoded:
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return encoded


def rows_of(pgconn: PGconn, result: PGresult) -> Rows:
    """Return the rows of a result, by name. Raises what psycopg would raise."""
    checked(pgconn, result)
    count = result.ntuples
    if not count:
        return []
    names, columns = [], []
    for at in range(result.nfields):
        names.append((result.fname(at) or b"").decode())
        load = _OF_TYPES.get(result.ftype(at), bytes.decode)
        values = (result.get_value(row, at) for row in range(count))
        columns.append([None if value is None else load(value) for value in values])
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def checked(pgconn: PGconn, result: PGresult) -> PGresult:
    """Raise what psycopg would raise, if a statement has failed."""
    if result.status in _FINE:
        return result
    if pgconn.status == ConnStatus.BAD and not result.error_field(DiagnosticField.SQLSTATE):
        raise psycopg.OperationalError(pgconn.error_message.decode("utf-8", "replace"))  # from libpq: it is gone
    raise error_from_result(result, "utf-8")
