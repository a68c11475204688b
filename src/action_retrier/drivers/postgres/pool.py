"""Connections for what may wait for other people's locks: users' transactions, and calls beside the queue."""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Iterator

import psycopg
from psycopg.pq import TransactionStatus

from .connection import connect_for_user, connect_for_user_async
from .guarded import AsyncUserConnection, UserConnection
from .urls import Target

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
    def connection(self) -> Iterator[UserConnection]:
        """Lend a connection; it comes back only if it is still sound, with no transaction open."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None or connection.closed:
            connection = connect_for_user(self._target)
        try:
            yield connection
        finally:
            with self._lock:
                keep = _is_sound(connection) and len(self._idle) < _KEPT
                if keep:
                    self._idle.append(connection)
            if not keep:
                with contextlib.suppress(psycopg.Error, OSError):
                    connection.close()

    @contextlib.asynccontextmanager
    async def connection_async(self) -> AsyncIterator[AsyncUserConnection]:
        """Lend a connection of this event loop."""
        idle = self._idle_of_loop.setdefault(asyncio.get_running_loop(), [])
        connection = idle.pop() if idle else None
        if connection is None or connection.closed:
            connection = await connect_for_user_async(self._target)
        try:
            yield connection
        finally:
            if _is_sound(connection) and len(idle) < _KEPT:
                idle.append(connection)
            else:
                with contextlib.suppress(psycopg.Error, OSError):
                    await connection.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()
        for theirs in self._idle_of_loop.values():
            for one in theirs:
                one.pgconn.finish()  # its loop may not run any more
        self._idle_of_loop.clear()


def _is_sound(connection: UserConnection | AsyncUserConnection) -> bool:
    if connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
        return False
    connection.settle()
    return True
