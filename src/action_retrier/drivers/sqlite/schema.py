"""Create and upgrade the schema, one numbered migration a transaction."""

import sqlite3
import uuid
from functools import cache
from importlib import resources

from ...errors import SchemaMismatch


@cache
def migrations() -> list[str]:
    """Return the migrations' texts, the first one first."""
    folder = resources.files("action_retrier") / "_sql" / "sqlite" / "migrations"
    return [file.read_text("utf-8") for file in sorted(folder.iterdir(), key=lambda file: file.name)]


def newest_version() -> int:
    """Return the version that this code was written for."""
    return len(migrations())


def read_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """Return what the database says about itself; None before there is a schema. Never raises for its absence."""
    cursor = connection.cursor()
    cursor.row_factory = None
    try:
        found = cursor.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'action_retrier_meta'"
        ).fetchone()
        if found is None:
            return None
        row = cursor.execute("SELECT value FROM action_retrier_meta WHERE key = ?", (key,)).fetchone()
    finally:
        cursor.close()
    if row is None:
        return None
    return row[0].decode() if isinstance(row[0], bytes) else str(row[0])


def found_version(connection: sqlite3.Connection) -> int:
    """
    Return the version that is there; 0 is none.

    Raises:
        SchemaMismatch: It was made by code that is more than one version ahead. One is fine:
            migrations only expand, so yesterday's workers run on today's schema.
    """
    found = int(read_meta(connection, "version") or 0)
    refuse_newer(found)
    return found


def refuse_newer(found: int) -> None:
    """Raise `SchemaMismatch` for a version that is more than one ahead."""
    if found > newest_version() + 1:
        raise SchemaMismatch(
            found=found, needed=newest_version(), remedy="upgrade action-retrier here: this code is too old for it"
        )


_WRITE_VERSION = (
    "INSERT INTO action_retrier_meta (key, value) VALUES ('version', {version}) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
_WRITE_INSTALLATION = (
    "INSERT INTO action_retrier_meta (key, value) VALUES ('installation', {installation}) ON CONFLICT DO NOTHING"
)


def migrate(connection: sqlite3.Connection) -> None:
    """
    Bring the schema up to date inside the transaction that is open on *connection*.

    The version is written in the same transaction, so that a process that dies here leaves
    the schema as it was.
    """
    for statement in migration_texts(found_version(connection)):
        connection.execute(statement)


def migration_texts(found: int = 0) -> list[str]:
    """Return the statements that bring the schema up to date from version *found*, in their order."""
    texts: list[str] = []
    for number, text in enumerate(migrations()[found:], found + 1):
        texts += [*split(text), _WRITE_VERSION.format(version=f"'{number}'")]
    return [*texts, _WRITE_INSTALLATION.format(installation=f"'{uuid.uuid4()}'")]


def script() -> str:
    """Return what `migrate` does to a database without a schema, for people who run it by hand."""
    parts = [
        "BEGIN IMMEDIATE;",
        *(text.strip() for text in migrations()),
        _WRITE_VERSION.format(version=f"'{newest_version()}'") + ";",
        _WRITE_INSTALLATION.format(installation="lower(hex(randomblob(16)))") + ";",
        "COMMIT;",
    ]
    return "\n\n".join(parts) + "\n"


def split(text: str) -> list[str]:
    """Split a migration into statements: ``executescript`` would commit the transaction first."""
    statements: list[str] = []
    pending = ""
    for line in text.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending.strip())
            pending = ""
    return [statement for statement in statements if statement]
