"""One SQLite file, with the library's schema and a table of its user's."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from action_retrier.drivers.sqlite.schema import migrate
from action_retrier.drivers.sqlite.transaction import Guard


class Store:
    """The file, and two connections to it: one that writes, and one that sees only what is committed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "simulated.db"
        self.reader = self._connect()
        with contextlib.closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("BEGIN IMMEDIATE")
            migrate(connection)
            connection.execute("CREATE TABLE notes (run_id TEXT, result TEXT)")
            connection.commit()
        self.touched: dict[str, list[str]] = {"run": [], "note": [], "worker": []}
        self._writers: list[sqlite3.Connection] = []
        self.open_writer()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level="IMMEDIATE", cached_statements=256)
        connection.execute("PRAGMA synchronous = OFF")
        connection.isolation_level = None
        return connection

    def open_writer(self) -> None:
        """Open the writing connection, which tells whose rows it has touched; the last one may still be held."""
        self.writer = connection = self._connect()
        connection.isolation_level = "IMMEDIATE"
        connection.create_function("touch", 2, self._touch)
        for kind, table, key, events in (
            ("run", "action_retrier_runs", "id", ("INSERT", "UPDATE", "DELETE")),
            ("worker", "action_retrier_workers", "id", ("DELETE",)),
            ("note", "notes", "run_id", ("INSERT", "UPDATE", "DELETE")),
        ):
            for event in events:
                row = "old" if event == "DELETE" else "new"
                connection.execute(
                    f"CREATE TEMP TRIGGER touch_{kind}_{event} AFTER {event} ON main.{table} "
                    f"BEGIN SELECT touch('{kind}', {row}.{key}); END"
                )
        if connection.in_transaction:
            connection.commit()
        self.guard = Guard(connection)
        self._writers.append(connection)

    def _touch(self, kind: str, key: str) -> None:
        self.touched[kind].append(key)

    def empty(self) -> None:
        """Make it as it was."""
        while self._writers[0] is not self.writer:
            self._writers.pop(0).close()
        if self.writer.in_transaction:
            self.writer.rollback()
        self.writer.execute("BEGIN IMMEDIATE")
        for table in ("action_retrier_runs", "action_retrier_attempts", "action_retrier_workers", "notes"):
            self.writer.execute(f"DELETE FROM {table}")  # noqa: S608
        self.writer.commit()
        self.forget_touched()

    def forget_touched(self) -> None:
        for keys in self.touched.values():
            keys.clear()

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Return what is committed."""
        cursor = self.reader.execute(query, parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def close(self) -> None:
        for connection in [*self._writers, self.reader]:
            connection.close()
