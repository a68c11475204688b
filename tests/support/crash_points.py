"""
The named points at which a process of the crash tests dies, by SIGKILL.

Nothing in the library knows of them: the program that is to die wraps the functions in question.
"""

import contextlib
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from action_retrier import _calls, _completion, _execution, _incarnation, _maintenance, _reporter, _worker
from action_retrier.drivers.sqlite import database, locks, writer
from action_retrier.drivers.sqlite.leases import SqliteLeases

_wanted = ""
_remaining = 0
_armed: set[str] = set()


def reach(point: str) -> None:
    """Die here if this is the point."""
    global _remaining  # noqa: PLW0603 - one process, one death
    if point != _wanted:
        return
    _remaining -= 1
    if _remaining <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


def _anything(_: object) -> bool:
    return True


_OPERATIONS: dict[str, tuple[ModuleType, str, Callable[[Any], bool]]] = {
    "start": (_calls, "start_runs", bool),
    "register": (_incarnation, "register_worker", _anything),
    "claim": (_worker, "claim_runs", lambda claimed: bool(claimed.runs or claimed.suspects)),
    "report": (_completion, "apply_moves", lambda applied: bool(applied.owned)),
    "callback_claim": (_reporter, "claim_callbacks", bool),
    "callback_done": (_completion, "finish_callback", bool),
    "callback_postponed": (_completion, "postpone_callback", bool),
    "recover": (_maintenance, "recover_worker", _anything),
    "expire": (_maintenance, "expire_runs", bool),
    "prune": (_maintenance, "prune_runs", bool),
    "sign_off": (_worker, "recover_worker", _anything),
}
"""Where an operation is called, and which of its results mean that it has written something."""


def install(point: str, nth: int = 1) -> None:
    """Make this process die when it comes to *point* for the *nth* time."""
    global _wanted, _remaining
    _wanted, _remaining = point, nth
    group = point.partition(".")[0]
    if group in _OPERATIONS:
        _around_operation(group)
    elif group == "begin":
        _wrap(_execution.Executions, "begin", "begin")
    elif group == "renew":
        _wrap(SqliteLeases, "renew", "renew")
    elif group == "acquire":
        _wrap(SqliteLeases, "acquire", "acquire")
    elif group == "stamp":
        _wrap(locks.LockFile, "write", "stamp")
    elif group == "checkpoint":
        writer._CHECKPOINT_BYTES = writer._CHECKPOINT_PAUSE_S = 0
        _wrap(writer.Writer, "_checkpoint", "checkpoint")
    elif group == "wal":
        _wrap(database, "_switch_to_wal", "wal")
    elif group == "migrate":
        _around_migration()
    elif group not in {"action", "callback", "own"}:  # those are in the functions themselves
        raise ValueError(f"no point {point!r}")


def _wrap(owner: Any, attribute: str, group: str) -> None:
    original = getattr(owner, attribute)

    def wrapped(*args: Any, **options: Any) -> Any:
        reach(f"{group}.before")
        result = original(*args, **options)
        reach(f"{group}.after")
        return result

    setattr(owner, attribute, wrapped)


def _around_operation(group: str) -> None:
    module, attribute, has_written = _OPERATIONS[group]
    operation = getattr(module, attribute)

    def wrapped(*args: Any, **options: Any) -> Any:
        reach(f"{group}.before_statement")
        result = yield from operation(*args, **options)
        if has_written(result):
            reach(f"{group}.after_statement")
            _armed.add(group)
        return result

    setattr(module, attribute, wrapped)
    transaction = writer.Writer._transaction

    @contextlib.contextmanager
    def watched(self: writer.Writer) -> Iterator[sqlite3.Connection]:
        with transaction(self) as connection:
            yield connection
            if group in _armed:
                reach(f"{group}.before_commit")
        if group in _armed:
            reach(f"{group}.after_commit")

    writer.Writer._transaction = watched


class _Statements:
    """A connection that dies before a statement."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, *args: Any) -> sqlite3.Cursor:
        reach("migrate.statement")
        return self._connection.execute(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _around_migration() -> None:
    migrate, read_meta = database.migrate, database.read_meta

    def watched_migrate(connection: sqlite3.Connection) -> None:
        migrate(_Statements(connection))
        reach("migrate.before_commit")

    def watched_read_meta(connection: sqlite3.Connection, key: str) -> str | None:
        reach("migrate.after_commit")  # what `_set_up` does next
        return read_meta(connection, key)

    database.migrate = watched_migrate
    database.read_meta = watched_read_meta
