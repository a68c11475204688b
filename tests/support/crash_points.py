"""
The named points at which a process of the crash tests dies, by SIGKILL.

Nothing in the library knows of them: the program that is to die wraps the functions in question.
"""

import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

from psycopg.pq import TransactionStatus

from action_retrier import _calls, _claiming, _completion, _execution, _incarnation, _maintenance, _reporter, _worker
from action_retrier.drivers import sqlite
from action_retrier.drivers.postgres import database as postgres_database
from action_retrier.drivers.postgres import session as postgres_session
from action_retrier.drivers.postgres.leases import PostgresLeases
from action_retrier.drivers.sqlite import database as sqlite_database
from action_retrier.drivers.sqlite import locks, writer
from action_retrier.drivers.sqlite.leases import SqliteLeases

_wanted = ""
_remaining = 0
_armed = threading.local()
"""Whether the operation in question has written something, in the transaction that this thread has open, or without."""


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
    "claim": (_claiming, "claim_runs", lambda claimed: bool(claimed.runs or claimed.suspects)),
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
        _wrap(PostgresLeases, "renew", "renew")
    elif group == "acquire":
        _wrap(SqliteLeases, "acquire", "acquire")
        _wrap(PostgresLeases, "acquire", "acquire")
    elif group == "stamp":
        _wrap(locks.LockFile, "write", "stamp")
    elif group == "checkpoint":
        writer._CHECKPOINT_BYTES = writer._CHECKPOINT_PAUSE_S = 0
        _wrap(writer.Writer, "_checkpoint", "checkpoint")
    elif group == "wal":
        _wrap(sqlite_database, "_switch_to_wal", "wal")
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
            if getattr(_armed, "stood_alone", False):  # and is committed
                reach(f"{group}.after_commit")
            else:
                reach(f"{group}.after_statement")
                _armed.yes = True
        return result

    setattr(module, attribute, wrapped)
    writer.Writer._transaction = _watched(writer.Writer._transaction, group)
    sqlite.SqliteDatabase.transaction_sync = _watched(sqlite.SqliteDatabase.transaction_sync, group)
    sqlite.SqliteDatabase.transaction = _watched_async(sqlite.SqliteDatabase.transaction, group)
    for module in (postgres_database, postgres_session):
        module.commit = _watched_commit(module.commit, group)
    postgres_database.commit_async = _watched_commit_async(postgres_database.commit_async, group)
    postgres_session.execute = _watched_execute(postgres_session.execute)


def _watched_execute(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Note whether the statement was sent without a transaction around it."""

    def watched(connection: Any, *args: Any) -> Any:
        rows = execute(connection, *args)
        _armed.stood_alone = connection.info.transaction_status == TransactionStatus.IDLE
        return rows

    return watched


def _watched(transaction: Callable[..., Any], group: str) -> Callable[..., Any]:
    """Return a transaction that dies around its COMMIT, if something was written in it that matters."""

    @contextlib.contextmanager
    def watched(*args: Any, **options: Any) -> Iterator[Any]:
        with transaction(*args, **options) as opened:
            yield opened
            if _is_armed():
                reach(f"{group}.before_commit")
        if _is_armed():
            reach(f"{group}.after_commit")

    return watched


def _watched_async(transaction: Callable[..., Any], group: str) -> Callable[..., Any]:
    @contextlib.asynccontextmanager
    async def watched(*args: Any, **options: Any) -> AsyncIterator[Any]:
        async with transaction(*args, **options) as opened:
            yield opened
            if _is_armed():
                reach(f"{group}.before_commit")
        if _is_armed():
            reach(f"{group}.after_commit")

    return watched


def _watched_commit(commit: Callable[..., None], group: str) -> Callable[..., None]:
    def watched(*args: Any) -> None:
        if _is_armed():
            reach(f"{group}.before_commit")
        commit(*args)
        if _is_armed():
            reach(f"{group}.after_commit")

    return watched


def _watched_commit_async(commit: Callable[..., Any], group: str) -> Callable[..., Any]:
    async def watched(*args: Any) -> None:
        if _is_armed():
            reach(f"{group}.before_commit")
        await commit(*args)
        if _is_armed():
            reach(f"{group}.after_commit")

    return watched


def _is_armed() -> bool:
    return getattr(_armed, "yes", False)


class _Statements:
    """A connection that dies before a statement."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, *args: Any) -> Any:
        if args != ("COMMIT",):
            reach("migrate.statement")
        else:
            reach("migrate.before_commit")
        return self._connection.execute(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _around_migration() -> None:
    """Die in a migration, which ends its transaction itself on PostgreSQL, and leaves that to its caller on SQLite."""
    for module in (postgres_database, sqlite_database):
        _watch_migration(module, module.migrate, module.read_meta)


def _watch_migration(module: Any, migrate: Callable[..., Any], read_meta: Callable[..., Any]) -> None:
    def watched_migrate(connection: Any, *schema: str) -> None:
        migrate(_Statements(connection), *schema)
        if module is sqlite_database:
            reach("migrate.before_commit")

    def watched_read_meta(*args: Any) -> Any:
        reach("migrate.after_commit")  # what `_set_up` does next
        return read_meta(*args)

    module.migrate, module.read_meta = watched_migrate, watched_read_meta
