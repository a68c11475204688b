"""Time that stands still until it is told to move."""

import asyncio
import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from .._policy import check_number

_START = datetime(2026, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _ManualTimer:
    def __init__(self, call: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._loop = loop
        self._canceled = False

    def cancel(self) -> None:
        """Do not make the call."""
        self._canceled = True

    def fire(self) -> None:
        """Make the call, on the loop it was asked for on."""
        if not self._canceled and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        if not self._canceled:
            self._call()


class ManualClock:
    """
    A clock that a test moves: ``App(..., clock=clock)``.

    Due times, backoff, time limits, deadlines and retention follow it; workers notice at once.

    Args:
        start: An aware datetime; by default the first of January 2026, UTC.

    Example:
        >>> clock = ManualClock()
        >>> clock.advance(1500)
        >>> clock.now().isoformat()
        '2026-01-01T00:00:01.500000+00:00'
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now_us = ((start or _START) - _EPOCH) // timedelta(microseconds=1)
        self._lock = threading.Lock()
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        self._order = itertools.count()
        self._subscribers: list[Callable[[], None]] = []

    def now(self) -> datetime:
        """Return the instant it shows, as an aware datetime in UTC."""
        return _EPOCH + timedelta(microseconds=self._now_us)

    def advance(self, ms: float) -> None:
        """
        Move time forward by *ms* milliseconds, and let everything that becomes due by it happen.

        Raises:
            ValueError, TypeError: It is no finite number, or negative.
        """
        given: object = ms
        if isinstance(given, timedelta):
            number = f"{given / timedelta(milliseconds=1):.15g}"
            raise TypeError(f"ms must be a number of milliseconds, not {given!r}: advance({number})")
        check_number("ms", ms)
        due = []
        with self._lock:
            self._now_us += round(ms * 1000)
            while self._timers and self._timers[0][0] <= self._now_us:
                due.append(heapq.heappop(self._timers)[2])
            subscribers = list(self._subscribers)
        for timer in due:
            timer.fire()
        for call in subscribers:
            call()

    def now_us(self) -> int:
        """Return the instant it shows, in microseconds since the epoch."""
        return self._now_us

    def monotonic_us(self) -> int:
        """Return the same: this clock only goes forward."""
        return self._now_us

    def call_later(self, delay_us: int, call: Callable[[], None]) -> _ManualTimer:
        """Make *call* on the running event loop once time has moved so far."""
        timer = _ManualTimer(call, asyncio.get_running_loop())
        with self._lock:
            heapq.heappush(self._timers, (self._now_us + delay_us, next(self._order), timer))
        if delay_us <= 0:
            timer.fire()
        return timer

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:
        """Make *call* whenever time has moved. Returns the way to end that."""
        with self._lock:
            self._subscribers.append(call)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):  # it has ended already
                self._subscribers.remove(call)

        return end
