"""
Calls in a transaction that is not ours to break, and what a cancellation does to them.

A statement that is cut short fails. If that is the savepoint around the call, or what releases it, the
user's whole transaction has failed with it, and nobody can undo that.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE_S = 1.0
"""How long an exchange may take to end by itself. What lasts longer waits for somebody's lock, within its savepoint."""


class Undivided:
    """A call that, when it is canceled, ends as a whole: it is taken back, or done if that was too late."""

    def __init__(self) -> None:
        self._is_wanted = True

    def go_on(self) -> None:
        """Before each exchange: raise `CancelledError` if nobody wants the call any more."""
        if not self._is_wanted:
            raise asyncio.CancelledError

    async def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run *call* in a task of its own. A cancellation of ours is raised once that has ended."""
        now_s = asyncio.get_running_loop().time
        task = asyncio.ensure_future(call)
        canceled: asyncio.CancelledError | None = None
        cut_at_s: float | None = None
        while not task.done():
            try:
                await asyncio.wait({task}, timeout=None if cut_at_s is None else max(0.0, cut_at_s - now_s()))
            except asyncio.CancelledError as error:  # perhaps again and again, as anyio does it
                if canceled is None:
                    canceled, cut_at_s = error, now_s() + _PATIENCE_S
                self._is_wanted = False
            if cut_at_s is not None and now_s() >= cut_at_s and not task.done():
                task.cancel()
                cut_at_s = None
        if canceled is None:
            return task.result()
        if not task.cancelled():
            task.exception()  # else the loop would tell that nobody has looked at it
        raise canceled
