"""Notice commits: our own at once, what other processes start by NOTIFY while somebody here is idle."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..._statements import Op, Statement
from .line import Line

T = TypeVar("T")
Write = Callable[[Callable[[], Op[None]]], Awaitable[None]]

_QUIET_S = 0.1
"""Whoever was busy asks to be told again only after as long: each change of mind is a write."""
_LOOK_S = 0.02
_MOST_PER_S = 200
"""Told more often, a worker rather looks by itself: telling costs those who start runs a lock that there is one of."""


class PostgresSubscription:
    """A wish to hear of commits."""

    asks_after_vain_s = 0.0
    """A claim in vain costs a statement, and nobody waits for it."""

    def __init__(self, listener: "Listener", call: Callable[[], None]) -> None:
        self._call = call
        self._listener = listener
        self._told: tuple[str, bool] = ("", False)
        self._busy_until_s = 0.0
        self._heard: list[float] = []
        self.active = False
        self.was_told = False

    def call(self) -> None:
        """Pass on that something has been committed."""
        self._call()

    def hear(self) -> None:
        """Pass on that another process has started something, and count how often that happens."""
        now = time.monotonic()
        self._heard = [*(at for at in self._heard[-_MOST_PER_S:] if now - at < 1), now]
        if self.active:
            self.was_told = True
            self._call()

    async def tune(self, worker: str, *, busy: bool) -> float | None:
        """Have other processes tell of what they start, unless *worker* is busy, or is told too often."""
        if not self._listener.is_possible:
            return None
        now = time.monotonic()
        if busy or len(self._heard) > _MOST_PER_S:
            self._busy_until_s = now + _QUIET_S
            self._heard = []
        wanted = now >= self._busy_until_s
        if wanted:
            await self._listener.listen()
        if self._told != (worker, wanted):
            await self._listener.publish(worker, is_idle=wanted)
            self._told = (worker, wanted)
        return None if wanted else _LOOK_S

    def close(self) -> None:
        """Hear no more."""
        self._listener.remove(self)


class Listener:
    """Passes on what is heard to the active subscriptions."""

    def __init__(self, make_line: Callable[[Callable[[], None]], Line], write: Write) -> None:
        """
        Begin with nobody who wants to hear.

        Args:
            make_line: Makes the connection, given what to call when something was heard on it.
            write: Runs an operation in a transaction.
        """
        self.line = make_line(self._hear)
        self._write = write
        self._lock = threading.Lock()
        self._subscriptions: list[PostgresSubscription] = []

    @property
    def is_possible(self) -> bool:
        """Whether notifications can be heard at all: not behind a pooler, and not where they are switched off."""
        return self.line.can_listen

    async def listen(self) -> None:
        """Hear of other processes from now on."""
        if not self.line.is_listening:
            await asyncio.to_thread(self.line.listen)
        self.line.listen_on(asyncio.get_running_loop())

    async def publish(self, worker: str, *, is_idle: bool) -> None:
        """Tell other processes whether *worker* wants to hear of what they start."""

        def publish() -> Op[None]:
            yield Statement("publish_worker", {"id": worker, "is_idle": int(is_idle)}, stands_alone=True)

        await self._write(publish)

    def subscribe(self, call: Callable[[], None]) -> PostgresSubscription:
        """Make *call*, from any thread, after commits of this process and of others."""
        subscription = PostgresSubscription(self, call)
        with self._lock:
            self._subscriptions = [*self._subscriptions, subscription]
        return subscription

    def remove(self, subscription: PostgresSubscription) -> None:
        """End a subscription."""
        with self._lock:
            self._subscriptions = [one for one in self._subscriptions if one is not subscription]

    def notify(self) -> None:
        """Tell the active subscriptions that something has been committed here."""
        for subscription in self._subscriptions:
            if subscription.active:
                subscription.call()

    def _hear(self) -> None:
        for subscription in self._subscriptions:
            subscription.hear()
