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
STREAMED = 5000
"""How many rows are fetched at once of what is too much for one answer."""

_HISTORY = """
CREATE TABLE IF NOT EXISTS effects (run_id {text} NOT NULL, outcome TEXT NOT NULL, shown TEXT);
CREATE TABLE IF NOT EXISTS orders (run_id {text} NOT NULL);
CREATE TABLE IF NOT EXISTS crash_history (
    number INTEGER PRIMARY KEY {numbered},
    run_id {text} NOT NULL,
    at BIGINT NOT NULL, -- us, by the database's clock
    old_state TEXT, old_attempt INTEGER, old_failures INTEGER, old_callback TEXT, old_due_at BIGINT,
    state TEXT, attempt INTEGER, failures INTEGER, callback TEXT, due_at BIGINT, deadline_at BIGINT, started_at BIGINT,
    note TEXT           -- of what has ended, what its status says; of a removal, what the run had, as JSON
);
"""
_COLUMNS = (
    "run_id, at, old_state, old_attempt, old_failures, old_callback, old_due_at,"
    " state, attempt, failures, callback, due_at, deadline_at, started_at, note"
)
_NOTE_CHANGE = """
    INSERT INTO {schema}crash_history ({columns})
    VALUES (NEW.id, {now}, OLD.state, OLD.attempt, OLD.failures, OLD.callback_state, OLD.due_at,
            NEW.state, NEW.attempt, NEW.failures, NEW.callback_state, NEW.due_at, NEW.deadline_at, NEW.started_at,
            CASE NEW.state WHEN 'succeeded' THEN 'success:' || NEW.result
                           WHEN 'failed' THEN 'failed:' || NEW.error_type || ': ' || NEW.error
                           WHEN 'canceled' THEN 'canceled' END);
"""
_NOTE_REMOVAL = """
    INSERT INTO {schema}crash_history ({columns})
    VALUES (OLD.id, {now}, OLD.state, OLD.attempt, OLD.failures, OLD.callback_state, OLD.due_at,
            'removed', OLD.attempt, OLD.failures, OLD.callback_state, OLD.due_at, OLD.deadline_at, OLD.started_at,
            {object}('options', OLD.options, 'on_complete', OLD.on_complete, 'args', OLD.args, 'attempts', {attempts}));
"""
_HAS_CHANGED = """
WHEN (OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt OR OLD.callback_state <> NEW.callback_state
  OR OLD.failures <> NEW.failures OR OLD.due_at <> NEW.due_at OR OLD.deadline_at {differs} NEW.deadline_at
  OR OLD.result {differs} NEW.result OR OLD.error_type {differs} NEW.error_type OR OLD.error {differs} NEW.error)
"""
_SQLITE = {
    "numbered": "",
    "text": "TEXT",
    "schema": "",
    "columns": _COLUMNS,
    "now": "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)",
    "differs": "IS NOT",
    "object": "json_object",
    "attempts": "json((SELECT json_group_array(json_object('number', number, 'error_type', error_type, 'delay', delay))"
    " FROM action_retrier_attempts WHERE run_id = OLD.id))",
}
_POSTGRES = {
    "numbered": "GENERATED ALWAYS AS IDENTITY",
    "text": 'TEXT COLLATE "C"',
    "schema": "public.",
    "columns": _COLUMNS,
    "now": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)",
    "differs": "IS DISTINCT FROM",
    "object": "json_build_object",
    "attempts": "(SELECT coalesce(json_agg(json_build_object('number', number, 'error_type', error_type, 'delay', delay)),"
    " '[]') FROM action_retrier.attempts WHERE run_id = OLD.id)",
}


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

    def stream(self, query: str) -> Iterator[dict[str, Any]]:
        """Return what a query gives row by row, without having all of it at once."""
        return self._database.stream(self._connection, self._database.sql(query))

    def write(self, query: str, *parameters: object) -> None:
        """Change something, and commit."""
        self._connection.execute(self._database.sql(query), parameters)
        self._connection.commit()


class CrashDatabase(Protocol):
    """What the crash tests need of a database system."""

    url: str
    """What an App opens it by."""
    kind: str
    errors: tuple[type[Exception], ...]
    """What a connection of the user's own raises."""
    begin: str
    """How a user begins a transaction that writes."""
    given: str
    """What makes a relation ``given (value)`` of a parameter, a JSON array of strings."""
    history: str
    """
    What gives all changes, by run and in order. Their ``ordered_at``, in microseconds, is NULL where nobody knows: no
    transaction that writes, and was begun after it, can end before that of the change.
    """
    seen_after_us: int
    """How long after that everybody sees the change."""
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

    def stream(self, connection: Any, query: str) -> Iterator[dict[str, Any]]:
        """Return what a query gives on a connection, row by row."""

    def install_witnesses(self) -> None:
        """Create the tables and the triggers that the oracle believes; the library's tables must be there."""

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
    errors = (sqlite3.Error,)
    begin = "BEGIN IMMEDIATE"
    given = "json_each(?)"
    # Whoever has changed anything keeps all others from writing until it has committed.
    history = "SELECT h.*, h.at AS ordered_at FROM crash_history AS h ORDER BY h.run_id, h.number"
    seen_after_us = 0
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

    def lets_write(self, *, within_s: float) -> bool:
        """Tell whether a transaction can be begun within that time: whether nobody keeps the write lock."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=within_s)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    @contextlib.contextmanager
    def looking(self) -> Iterator[Look]:
        """Look into the file, through a connection for the block."""
        with contextlib.closing(self.connect()) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            yield Look(self, connection)

    def stream(self, connection: Any, query: str) -> Iterator[dict[str, Any]]:
        """A cursor of sqlite3 takes one step after the other."""
        return map(dict, connection.execute(query))

    def install_witnesses(self) -> None:
        """Create the tables and the triggers."""
        with contextlib.closing(self.connect()) as connection:
            connection.executescript(
                _HISTORY.format(**_SQLITE)
                + f"CREATE TRIGGER IF NOT EXISTS crash_changes AFTER UPDATE ON action_retrier_runs {_HAS_CHANGED.format(**_SQLITE)}"
                + f"BEGIN {_NOTE_CHANGE.format(**_SQLITE)} END;"
                + "CREATE TRIGGER IF NOT EXISTS crash_removals AFTER DELETE ON action_retrier_runs "
                + f"BEGIN {_NOTE_REMOVAL.format(**_SQLITE)} END;"
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
    errors = (psycopg.Error,)
    begin = "BEGIN"
    given = "json_array_elements_text(CAST(? AS json))"
    # A commit is dated, put into the log, which is written to the disk in order, and then shown to others. A server that
    # crashes meanwhile answers nobody until it has recovered.
    history = """
        SELECT h.*, CASE current_setting('track_commit_timestamp') WHEN 'on'
                    THEN CAST(extract(epoch FROM pg_xact_commit_timestamp(h.xmin)) * 1000000 AS bigint) END AS ordered_at
          FROM crash_history AS h
         ORDER BY h.run_id, h.number
    """
    seen_after_us = 2_000_000

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
        self._cursors = 0

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

    def stream(self, connection: Any, query: str) -> Iterator[dict[str, Any]]:
        """A cursor of the server's, since one of the client's has everything at once."""
        self._cursors += 1
        with connection.cursor(name=f"stream_{self._cursors}") as cursor:
            cursor.itersize = STREAMED
            yield from cursor.execute(query)

    def install_witnesses(self) -> None:
        """Create the tables and the triggers."""
        with self.connect() as connection:
            connection.execute(
                _HISTORY.format(**_POSTGRES)
                + "CREATE OR REPLACE FUNCTION crash_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                + f" IF TG_OP = 'DELETE' THEN {_NOTE_REMOVAL.format(**_POSTGRES)}"
                + f" ELSE {_NOTE_CHANGE.format(**_POSTGRES)} END IF; RETURN NULL; END $$;"
                + "CREATE OR REPLACE TRIGGER crash_changes AFTER UPDATE ON action_retrier.runs"
                + f" FOR EACH ROW {_HAS_CHANGED.format(**_POSTGRES)} EXECUTE FUNCTION crash_note();"
                + "CREATE OR REPLACE TRIGGER crash_removals AFTER DELETE ON action_retrier.runs"
                + " FOR EACH ROW EXECUTE FUNCTION crash_note();"
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
