"""Notice commits: our own at once, those of other processes by NOTIFY while somebody here is idle."""

import threading
from collections.abc import Callable

from .line import Line


class PostgresSubscription:
    """A wish to hear of commits."""

    def __init__(self, listener: "Listener", call: Callable[[], None]) -> None:
        self.call = call
        self._listener = listener
        self._active = False

    @property
    def active(self) -> bool:
        """While False nothing is told."""
        return self._active

    @active.setter
    def active(self, value: bool) -> None:
        self._active = value
        if value:
            self._listener.line.listen()

    def close(self) -> None:
        """Hear no more."""
        self._listener.remove(self)


class Listener:
    """Passes on what is heard to the active subscriptions."""

    def __init__(self, make_line: Callable[[Callable[[], None]], Line]) -> None:
        self.line = make_line(self.notify)
        self._lock = threading.Lock()
        self._subscriptions: list[PostgresSubscription] = []

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
        """Tell the active subscriptions that something has been committed."""
        for subscription in self._subscriptions:
            if subscription.active:
                subscription.call()
