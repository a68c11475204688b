"""The shop's own two tables, on either database."""

import os
import sqlite3
from contextlib import closing
from importlib import import_module
from typing import Any, Protocol, cast


class Connection(Protocol):
    """What the connections of both databases have in common."""

    def execute(self, sql: str, parameters: tuple[Any, ...] = ..., /) -> Any:
        """Execute one statement, in a transaction that begins by itself."""

    def commit(self) -> None:
        """End the transaction."""

    def rollback(self) -> None:
        """Undo the transaction."""

    def close(self) -> None:
        """Close the connection."""


SQLITE = "sqlite:///"
CREATE_TABLES = (
    "CREATE TABLE orders (id text PRIMARY KEY, number text, status text NOT NULL, events integer NOT NULL)",
    # Nothing here is unique, on purpose: a callback that committed twice would be seen.
    "CREATE TABLE webhook_log (run_id text NOT NULL, event_id text NOT NULL, order_id text NOT NULL, outcome text)",
)
SELECT_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE name IN ('orders', 'webhook_log')",
    "postgresql": "SELECT relname FROM pg_class WHERE oid IN (to_regclass('orders'), to_regclass('webhook_log'))",
}
UPSERT_ORDER = """
INSERT INTO orders (id, number, status, events) VALUES (?, ?, ?, 1)
ON CONFLICT (id) DO UPDATE SET status = excluded.status, events = orders.events + 1
"""
MARK_ORDER_CANCELED = "UPDATE orders SET status = 'notifications canceled' WHERE id = ?"
INSERT_WEBHOOK_LOG = "INSERT INTO webhook_log (run_id, event_id, order_id, outcome) VALUES (?, ?, ?, ?)"
SELECT_ORDERS = "SELECT id, events FROM orders"
SELECT_WEBHOOK_LOG = "SELECT run_id, event_id, outcome FROM webhook_log"


def connect(database: str) -> Connection:
    """Open the user's own connection to the database of this URL."""
    if database.startswith(SQLITE):
        return sqlite3.connect(database.removeprefix(SQLITE), timeout=30)
    return cast("Connection", import_module("psycopg").connect(database))  # an extra


def create_tables(database: str) -> None:
    """
    Create the shop's own tables; and a file of SQLite, if there is none yet, that only its owner may read.

    Raises:
        ValueError: one of that name is there already.
    """
    if database.startswith(SQLITE):
        os.close(os.open(database.removeprefix(SQLITE), os.O_RDWR | os.O_CREAT, 0o600))
    with closing(connect(database)) as db:
        kind = "sqlite" if isinstance(db, sqlite3.Connection) else "postgresql"
        found = [row[0] for row in db.execute(SELECT_TABLES[kind]).fetchall()]
        if found:
            raise ValueError(f"this database has a table {found[0]!r} already: give the demo one that has not")
        for statement in CREATE_TABLES:
            db.execute(statement)
        db.commit()


def sql_for(db: Connection, sql: str) -> str:
    """The statement with the placeholders that the driver of *db* wants."""
    return sql if isinstance(db, sqlite3.Connection) else sql.replace("?", "%s")
