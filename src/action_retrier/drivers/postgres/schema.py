"""Create and upgrade the schema, one numbered migration a transaction, under an advisory lock."""

import uuid
from functools import cache
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from ...config import logger
from ...errors import SchemaMismatch

_LOCK = 0x6163_7472_6574_7279  # "actretry": whoever migrates holds it
# Not to_regclass: it believes what its session knew before it waited for another one that made the tables.
_EXISTS = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = %s AND tablename = 'meta')"


@cache
def migrations() -> list[str]:
    """Return the migrations' texts, the first one first."""
    folder = resources.files("action_retrier") / "_sql" / "postgres" / "migrations"
    return [file.read_text("utf-8") for file in sorted(folder.iterdir(), key=lambda file: file.name)]


def newest_version() -> int:
    """Return the version that this code was written for."""
    return len(migrations())


def read_meta(connection: psycopg.Connection[Any], schema: str, key: str) -> str | None:
    """Return what the database says about itself; None before there is a schema. Never raises for its absence."""
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        exists = cursor.execute(_EXISTS, (schema,)).fetchone()
        if exists is None or not exists[0]:
            return None
        text = sql.SQL("SELECT value FROM {}.meta WHERE key = %s").format(sql.Identifier(schema))
        row = cursor.execute(text, (key,)).fetchone()
    return None if row is None else str(row[0])


def found_version(connection: psycopg.Connection[Any], schema: str) -> int:
    """
    Return the version that is there; 0 is none.

    Raises:
        SchemaMismatch: It was made by code that is more than one version ahead. One is fine:
            migrations only expand, so yesterday's workers run on today's schema.
    """
    found = int(read_meta(connection, schema, "version") or 0)
    if found > newest_version() + 1:
        raise SchemaMismatch(
            found=found, needed=newest_version(), remedy="upgrade action-retrier here: this code is too old for it"
        )
    return found


def migrate(connection: psycopg.Connection[Any], schema: str) -> None:
    """Bring the schema up to date, a transaction a migration; others wait their turn."""
    while True:
        # Whatever the role's default is: a snapshot from before the lock would not show what others have made.
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            # Ends with the transaction, so that it works behind a pooler too, and with its holder.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            found = found_version(connection, schema)
            if found < newest_version():
                for statement in _step(found, schema):
                    connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            if not connection.closed:
                connection.execute("ROLLBACK")
            raise
        if found == newest_version() - 1:
            logger.info("schema version %d is in place", newest_version())
        if found >= newest_version() - 1:
            return


def _step(found: int, schema: str) -> list[bytes]:
    """Return what takes the schema from version *found* to the next."""
    texts = [f"CREATE SCHEMA IF NOT EXISTS {schema}"] if found == 0 else []
    texts.append(migrations()[found].replace("{schema}", schema))
    texts.append(
        f"INSERT INTO {schema}.meta (key, value) VALUES ('version', '{found + 1}') "  # noqa: S608 - a checked name
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    )
    if found == 0:
        texts.append(
            f"INSERT INTO {schema}.meta (key, value) VALUES ('installation', '{uuid.uuid4()}') "  # noqa: S608
            "ON CONFLICT DO NOTHING"
        )
    return [text.encode() for text in texts]


def script(schema: str) -> str:
    """Return what `migrate` does to a database without a schema, for people who run it by hand."""
    parts = ["BEGIN;"]
    for found in range(newest_version()):
        parts += [text.decode().strip().removesuffix(";") + ";" for text in _step(found, schema)]
    return "\n\n".join([*parts, "COMMIT;"]) + "\n"
