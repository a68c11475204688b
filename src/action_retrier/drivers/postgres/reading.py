"""An event loop that waits for what comes on a connection that threads may be using as well."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

import psycopg


class Reading:
    """Calls somebody on an event loop whenever there is something to read, until it is ended."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: "psycopg.Connection[Any]", call: Callable[[], None]
    ) -> None:
        """
        Begin; to be called on the loop.

        Raises:
            NotImplementedError: The loop cannot wait for a socket, as one of Windows.
        """
        self._loop = loop
        self.connection = connection
        # One of its own: nobody else registers the same, even where the connection's has been closed and given away.
        self._descriptor = os.dup(connection.pgconn.socket)
        try:
            loop.add_reader(self._descriptor, call)
        except BaseException:
            self._close()
            raise

    @property
    def is_over(self) -> bool:
        """Whether nobody is called any more; not at once, if it is ended from elsewhere than the loop."""
        return self._descriptor < 0 or self._loop.is_closed()

    def end(self) -> None:
        """Call nobody any more; to be called on the loop."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._close()

    def end_from_elsewhere(self) -> None:
        """Call nobody any more; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.end)
        except RuntimeError:  # it is closed, and has forgotten all that it waited for
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
