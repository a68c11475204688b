"""
A statement of ours on a connection that user code holds at times, with what goes before it, in one exchange.

The simple protocol takes any number of statements at once, where the extended one takes one, and an answer to wait for
each. So parameters are written out, and what is prepared is called by name.
"""

import itertools
from collections.abc import Sequence
from typing import Final

import psycopg
from psycopg.generators import execute
from psycopg.pq import Escaping, PipelineStatus
from psycopg.pq.abc import PGresult

from ..._statements import Rows, Statement
from .connection import numbered
from .guarded import AsyncUserConnection
from .wire import checked, rows_of, values_of

_OFF: Final = PipelineStatus.OFF
_numbers = itertools.count(1)


def can_speak(connection: AsyncUserConnection) -> bool:
    """Tell whether it is possible: not behind a pooler, in a pipeline, or in an encoding that user code has set."""
    pgconn = connection.pgconn
    return (
        connection.own_threshold is not None
        and pgconn.pipeline_status == _OFF
        and pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )


async def execute_after(
    connection: AsyncUserConnection, before: Sequence[str], statement: Statement, schema: str, now_us: int | None
) -> Rows:
    """
    Run statements without parameters and rows, and then one of ours; return its rows.

    Raises:
        psycopg.errors.InvalidSqlStatementName: What was prepared has been discarded, by user code, or by psycopg after
            a rollback; the next time it is prepared anew.
    """
    pgconn, texts = connection.pgconn, list(before)
    name = connection.prepared.get(statement.name)
    is_new = name is None
    if name is None:
        name = f"action_retrier_{next(_numbers)}"
        texts.append(f"PREPARE {name} AS {numbered(statement.name, schema).decode()}")
    write = Escaping(pgconn).escape_literal
    values = ["NULL" if value is None else write(value).decode() for value in values_of(statement, schema, now_us)]
    texts.append(f"EXECUTE {name}({', '.join(values)})" if values else f"EXECUTE {name}")
    try:
        result = await _exchange(connection, "; ".join(texts))
    except psycopg.errors.InvalidSqlStatementName:
        connection.prepared.clear()
        raise
    if is_new:
        connection.prepared[statement.name] = name
    return rows_of(pgconn, result)


async def _exchange(connection: AsyncUserConnection, text: str) -> PGresult:
    """Run statements and return the result of the last one. Raises what the first that fails tells."""
    pgconn = connection.pgconn
    async with connection.lock:
        pgconn.send_query(text.encode())
        results: list[PGresult] = await connection.wait(execute(pgconn))
    return [checked(pgconn, result) for result in results][-1]
