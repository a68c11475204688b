"""Whether anything is left in a PostgreSQL database, for the programs beside this one."""

import functools
from typing import Any

import psycopg


@functools.cache
def _connection(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True)


def any_left(url: str, condition: str) -> int:
    """Return 1 if there is a row such as ``FROM ... WHERE ...`` says, through a connection that is kept."""
    row = _connection(url).execute(f"SELECT EXISTS (SELECT 1 {condition})".encode()).fetchone()
    assert row is not None
    return int(row[0])
