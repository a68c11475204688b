"""Connections for what may wait for other people's locks: users' transactions, and calls beside the queue."""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from ...errors import DatabaseUnavailable
from .connection import connect_for_user, connect_for_user_async
from .guarded import AsyncUserConnection, UserConnection
from .urls import Target

T = TypeVar("T")

_KEPT = 4
"""Idle connections that are kept."""


class Pool:
    """
    Hands out connections, opened as needed; few are kept.

    Async ones belong to the event loop they were opened on.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._idle: list[UserConnection] = []
        self._idle_of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[AsyncUserConnection]] = (
            weakref.WeakKeyDictionary()
        )

    @contextlib.contextmanager
    def begun(self, begin: Callable[[UserConnection], T]) -> Iterator[tuple[UserConnection, T]]:
        """
        Lend a connection on which *begin* has begun a transaction, and what it returned.

        It comes back only if it is still sound, with no transaction open.
        """
        connection, begun = self._begin(begin)
        try:
            yield connection, begun
        finally:
            with self._lock:
                keep = _is_sound(connection) and len(self._idle) < _KEPT
                if keep:
                    self._idle.append(connection)
            if not keep:
                _discard(connection)

    def _begin(self, begin: Callable[[UserConnection], T]) -> tuple[UserConnection, T]:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            is_fresh = connection is None
            connection = connection or connect_for_user(self._target)
            try:
                return connection, begin(connection)
            except BaseException as error:
                _discard(connection)
                if is_fresh or not isinstance(error, DatabaseUnavailable):
                    raise
                # It broke while it was idle: the server may have been restarted, and be well.

    @contextlib.asynccontextmanager
    async def begun_async(
        self, begin: Callable[[AsyncUserConnection], Awaitable[T]]
    ) -> AsyncIterator[tuple[AsyncUserConnection, T]]:
        """Lend a connection of this event loop on which *begin* has begun a transaction; else as `begun`."""
        idle = self._idle_here()
        connection, begun = await self._begin_async(idle, begin)
        try:
            yield connection, begun
        finally:
            if _is_sound(connection) and len(idle) < _KEPT:
                idle.append(connection)
            else:
                _discard(connection)

    def _idle_here(self) -> list[AsyncUserConnection]:
        """Return the idle connections of this event loop; close those of loops that are no more."""
        with self._lock:
            closed = [loop for loop in self._idle_of_loop if loop.is_closed()]
            left = [one for loop in closed for one in self._idle_of_loop.pop(loop, [])]
            idle = self._idle_of_loop.setdefault(asyncio.get_running_loop(), [])
        for one in left:
            _discard(one)
        return idle

    async def _begin_async(
        self, idle: list[AsyncUserConnection], begin: Callable[[AsyncUserConnection], Awaitable[T]]
    ) -> tuple[AsyncUserConnection, T]:
        while True:
            is_fresh = not idle
            connection = idle.pop() if idle else await connect_for_user_async(self._target)
            try:
                return connection, await begin(connection)
            except BaseException as error:
                _discard(connection)
                if is_fresh or not isinstance(error, DatabaseUnavailable):
                    raise

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
            theirs = [one for ones in self._idle_of_loop.values() for one in ones]
            self._idle_of_loop.clear()
        for connection in idle:
            _discard(connection)
        for one in theirs:
            _discard(one)


def _discard(connection: UserConnection | AsyncUserConnection) -> None:
    """Close a connection of either colour, at once and wherever: its event loop may not run any more."""
    if not connection.is_abandoned:
        with contextlib.suppress(psycopg.Error, OSError):
            connection.pgconn.finish()


def _is_sound(connection: UserConnection | AsyncUserConnection) -> bool:
    return (
        not connection.is_abandoned
        and not connection.closed
        and connection.info.transaction_status == TransactionStatus.IDLE
    )
