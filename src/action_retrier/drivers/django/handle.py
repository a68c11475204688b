"""A database connection of Django's, inside ``atomic``."""

from typing import Any, TypeVar

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionProxy

from ..._statements import Op
from ...errors import InvalidContext
from .. import Colour
from ..handle import FindRaw, Handle

T = TypeVar("T")


def find_handle(handle: object, find_raw: FindRaw, *, writes: bool) -> "DjangoHandle | None":
    """Return what runs operations through *handle*; None if it is no database connection."""
    if isinstance(handle, ConnectionProxy | BaseDatabaseWrapper) and hasattr(handle, "in_atomic_block"):
        return DjangoHandle(handle, find_raw, writes=writes)
    return None


class DjangoHandle:
    """Runs operations on the driver's connection under Django's, in the atomic block that is open."""

    colours: frozenset[Colour] = frozenset({"sync"})

    def __init__(self, connection: Any, find_raw: FindRaw, *, writes: bool) -> None:
        self._connection = connection
        self._find_raw = find_raw
        self._writes = writes

    def _check(self) -> None:
        connection = self._connection
        try:
            connection.validate_thread_sharing()
        except DatabaseError as error:
            raise self._invalid("of another thread", "use django.db.connections in the thread of the call") from error
        if connection.closed_in_transaction:
            raise self._invalid("that was closed inside its atomic block", "leave the block first")
        if self._writes and not connection.in_atomic_block:
            raise self._invalid(
                "outside of atomic",
                "make the call inside transaction.atomic(), or pass the app to have it commit by itself",
            )
        if connection.needs_rollback:
            raise self._invalid("whose atomic block has failed", "leave the block, which rolls it back")

    def _invalid(self, what: str, remedy: str) -> InvalidContext:
        return InvalidContext(problem=f"ctx is the Django connection {self._connection.alias!r} {what}", remedy=remedy)

    def unwrap(self) -> Handle:
        """Return what runs on the driver's connection."""
        self._check()
        self._connection.ensure_connection()
        raw = self._find_raw(self._connection.connection)
        if raw is None:
            raise self._invalid(
                f"on {self._connection.vendor}, by {type(self._connection.connection).__module__.partition('.')[0]}, "
                "which the app cannot use",
                "pass one to the app's own database; on PostgreSQL, by psycopg 3 (pip install 'psycopg[binary]')",
            )
        return raw

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""
        return bool(self._connection.in_atomic_block)

    async def run(self, op: Op[T]) -> T:
        """Never called: the async retrier refuses the handle."""
        raise NotImplementedError  # pragma: no cover - never called

    def run_sync(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""
        result: T = self.unwrap().run_sync(op)
        return result
