"""
The databases that the crash tests take place on, and the test's own look into them.

Queries name tables as SQLite has them (``action_retrier_runs``) and say ``?``; each database takes them its way.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg.rows import dict_row

from action_retrier.drivers.postgres.leases import LEASE_US
from action_retrier.drivers.postgres.urls import parse

LEASE_S = LEASE_US / 1_000_000
PATIENCE_S = 30
"""How long a user's own connection waits: SQLite does not let those who wait have their turn in order."""

_HISTORY = """
CREATE TABLE IF NOT EXISTS effects (run_id TEXT NOT NULL, outcome TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS orders (run_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS crash_history (
    number INTEGER PRIMARY KEY {numbered},
    run_id TEXT NOT NULL,
    old_state TEXT, old_attempt INTEGER, old_failures INTEGER, old_callback TEXT,
    state TEXT, attempt INTEGER, failures INTEGER, callback TEXT
);
"""
_NOTE = """
    INSERT INTO {schema}crash_history
           (run_id, old_state, old_attempt, old_failures, old_callback, state, attempt, failures, callback)
    VALUES (NEW.id, OLD.state, OLD.attempt, OLD.failures, OLD.callback_state,
            NEW.state, NEW.attempt, NEW.failures, NEW.callback_state);
"""
_HAS_CHANGED = """
WHEN (OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt OR OLD.callback_state <> NEW.callback_state
  OR OLD.failures <> NEW.failures)
"""


class Look:
    """The test's own look into a database."""

    def __init__(self, database: "CrashDatabase", connection: Any) -> None:
        self._database = database
        self._connection = connection

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        """Return what a query gives."""
        return [dict(row) for row in self._connection.execute(self._database.sql(query), parameters)]

    def value(self, query: str, *parameters: object) -> Any:
        """Return the one value that a query gives."""
        (row,) = self.rows(query, *parameters)
        (value,) = row.values()
        return value

    def write(self, query: str, *parameters: object) -> None:
        """Change something, and commit."""
        self._connection.execute(self._database.sql(query), parameters)
        self._connection.commit()


class CrashDatabase(Protocol):
    """What the crash tests need of a database system."""

    url: str
    """What an App opens it by."""
    kind: str
    begin: str
    """How a user begins a transaction that writes."""
    given: str
    """What makes a relation ``given (value)`` of a parameter, a JSON array of strings."""
    death_shows_s: float
    """How soon after a worker's death its runs begin elsewhere: a lock shows it, or its lease runs out."""
    lease_s: float | None
    """How long workers' leases are, if they are not as long as they usually are."""

    def sql(self, query: str) -> str:
        """Return a query as this database takes it."""

    def connect(self, *, begins_itself: bool = True) -> Any:
        """Open a connection of the user's own; one that does not begin transactions itself commits at once."""

    def looking(self) -> contextlib.AbstractContextManager[Look]:
        """Look into it, at one state of it, for the block."""

    def install_witnesses(self) -> None:
        """Create the tables and the trigger that the oracle believes; the library's tables must be there."""

    def damage(self) -> list[str]:
        """Return what is broken in the files, as far as the database system can tell."""

    def tables(self) -> int:
        """Return how many tables of the library there are."""

    def tells_death(self) -> bool:
        """Tell whether a worker's death shows at once: a server that has just started trusts leases only."""

    def close(self) -> None:
        """Let go of everything."""


class SqliteDatabase:
    """A file."""

    kind = "sqlite"
    begin = "BEGIN IMMEDIATE"
    given = "json_each(?)"
    death_shows_s = 2.0
    lease_s = None

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = Path(url.removeprefix("sqlite:///"))

    def sql(self, query: str) -> str:
        """Queries are written for SQLite."""
        return query

    def connect(self, *, begins_itself: bool = True) -> sqlite3.Connection:
        """Open a connection of the user's own."""
        options: dict[str, Any] = {} if begins_itself else {"isolation_level": None}
        return sqlite3.connect(self.path, timeout=PATIENCE_S, **options)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Look]:
        """Look into the file, through a connection for the block."""
        with contextlib.closing(self.connect()) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            yield Look(self, connection)

    def install_witnesses(self) -> None:
        """Create the tables and the trigger."""
        with contextlib.closing(self.connect()) as connection:
            connection.executescript(
                _HISTORY.format(numbered="")
                + f"CREATE TRIGGER IF NOT EXISTS crash_changes AFTER UPDATE ON action_retrier_runs {_HAS_CHANGED}"
                + f"BEGIN {_NOTE.format(schema='')} END;"
            )

    def damage(self) -> list[str]:
        """Ask SQLite."""
        with self.looking() as look:
            found = [row["integrity_check"] for row in look.rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def tables(self) -> int:
        """Return how many tables there are."""
        with self.looking() as look:
            return int(look.value("SELECT count(*) FROM sqlite_master WHERE type = 'table'"))

    def tells_death(self) -> bool:
        """A lock file always does."""
        return True

    def close(self) -> None:
        """Nothing is open."""


class PostgresDatabase:
    """A database of a server that tests have brought up, or were given."""

    kind = "postgres"
    begin = "BEGIN"
    given = "json_array_elements_text(CAST(? AS json))"

    def __init__(self, url: str, beside: str | None = None, lease_s: float | None = None) -> None:
        """
        Take a database; nothing is opened yet.

        Args:
            url: What the library and its users open it by.
            beside: How the test itself reaches it, if that leads through a pooler.
            lease_s: How long workers' leases are to be; None for as long as they usually are.
        """
        self.url = url
        target = parse(url)
        self._conninfo = target.conninfo
        self._look_at = parse(beside or url).conninfo
        self.lease_s = lease_s
        self.death_shows_s = 2.5 if target.direct else (lease_s or LEASE_S) + 3
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def sql(self, query: str) -> str:
        """Return a query with the schema that tables are in, and placeholders as psycopg wants them."""
        return query.replace("action_retrier_", "action_retrier.").replace("?", "%s")

    def connect(self, *, begins_itself: bool = True) -> psycopg.Connection[Any]:
        """Open a connection of the user's own."""
        return psycopg.connect(self._conninfo, autocommit=not begins_itself, prepare_threshold=None)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Look]:
        """Look into it through a connection that is kept, as long as the server keeps it."""
        try:
            connection = self._begun()
        except psycopg.OperationalError:  # the server has crashed meanwhile
            self.close()
            connection = self._begun()
        try:
            yield Look(self, connection)
        finally:
            with contextlib.suppress(psycopg.Error):
                connection.rollback()

    def _begun(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._look_at, autocommit=True, prepare_threshold=None, row_factory=dict_row
            )
        self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        return self._connection

    def install_witnesses(self) -> None:
        """Create the tables and the trigger."""
        with self.connect() as connection:
            connection.execute(
                _HISTORY.format(numbered="GENERATED ALWAYS AS IDENTITY")
                + "CREATE OR REPLACE FUNCTION crash_note() RETURNS trigger LANGUAGE plpgsql AS "
                + f"$$ BEGIN {_NOTE.format(schema='public.')} RETURN NULL; END $$;"
                + "CREATE OR REPLACE TRIGGER crash_changes AFTER UPDATE ON action_retrier.runs"
                + f" FOR EACH ROW {_HAS_CHANGED} EXECUTE FUNCTION crash_note();"
            )
        connection.close()

    def damage(self) -> list[str]:
        """Compare what indexes say with what the table says: the extension that looks deeper is not in the wheel."""
        with self.looking() as look:
            query = "SELECT count(*) FROM action_retrier_runs WHERE completed_at IS NOT NULL AND completed_at > -1"
            look.rows("SELECT set_config('enable_seqscan', 'off', true)")
            by_index = look.value(query)
            look.rows("SELECT set_config('enable_seqscan', 'on', true), set_config('enable_indexscan', 'off', true)")
            look.rows("SELECT set_config('enable_bitmapscan', 'off', true)")
            by_table = look.value(query)
        return [] if by_index == by_table else [f"{by_index} runs have completed by index, {by_table} by table"]

    def tables(self) -> int:
        """Return how many tables there are."""
        with self.looking() as look:
            return int(look.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'action_retrier'"))

    def tells_death(self) -> bool:
        """Ask how long the server has been up: it must be longer than a lease."""
        with self.looking() as look:
            return bool(look.value("SELECT pg_postmaster_start_time() < clock_timestamp() - interval '11 s'"))

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()


def crash_database(url: str) -> CrashDatabase:
    """Return what *url* names."""
    return SqliteDatabase(url) if url.startswith("sqlite") else PostgresDatabase(url)
