"""Time, as an injected object: the only module that reads a clock."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Do not make the call."""


class Clock(Protocol):
    """
    Where instants and durations come from.

    A test injects `action_retrier.testing.ManualClock`, and everything that depends on time
    (due times, backoff, time limits, deadlines, retention) follows it.
    """

    def now_us(self) -> int:
        """Return the wall clock, in microseconds since the epoch, UTC."""

    def monotonic_us(self) -> int:
        """Return a clock that only goes forward, for durations, in microseconds."""

    def call_later(self, delay_us: int, call: Callable[[], None]) -> Timer:
        """Make *call* on the running event loop after *delay_us*."""

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:
        """Make *call*, from any thread, whenever time jumps. Returns the way to end that."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Return the wall clock, in microseconds since the epoch, UTC."""
        return time.time_ns() // 1000

    def monotonic_us(self) -> int:
        """Return the monotonic clock, in microseconds."""
        return time.monotonic_ns() // 1000

    def call_later(self, delay_us: int, call: Callable[[], None]) -> Timer:
        """Make *call* on the running event loop after *delay_us*."""
        return asyncio.get_running_loop().call_later(delay_us / 1e6, call)

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002 - this clock never jumps
        """Do nothing: a real clock does not jump, and what waits for it has timers."""
        return lambda: None


def loop_time_s(loop: asyncio.AbstractEventLoop) -> float:
    """Return a loop's time as it is now: that of uvloop stands still while calls are made, until a timer is set."""
    loop.call_later(0.001, _nothing).cancel()
    return loop.time()


def _nothing() -> None:
    """Is never called."""


def boot_time_us() -> int:
    """
    Return the time since the machine started, in microseconds.

    The same for all processes of a machine, and it goes on while the machine is suspended, so
    that a lease that was not renewed in a sleep is seen to have ended. Where the system has no
    such clock, the monotonic one, which is also shared, stands in.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    return time.monotonic_ns() // 1000
