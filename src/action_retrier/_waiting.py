"""The part of waiting for a run that has no colour."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from ._clock import Clock
from ._policy import check_number, to_us
from .drivers import Database
from .results import Completed, RunResult, RunStatus

_POLL_S = 0.25
_SHORTEST_PAUSE_S = 0.001
_FIRST_PAUSE_S = 0.01
_PATIENCE = 8  # wait an eighth of the time that it has taken so far


class Waiting:
    """One wait: wakes up when something may have ended, and knows when to give up."""

    def __init__(
        self, database: Database, clock: Clock, wake: Callable[[], None], run_id: str, timeout_ms: float | None
    ) -> None:
        """
        Check the arguments.

        Args:
            wake: Called, from any thread, when it is worth looking again.
            timeout_ms: Give up after this; None never does.

        Raises:
            ValueError, TypeError: *timeout_ms* is no number of milliseconds.
        """
        if timeout_ms is not None:
            check_number("timeout_ms", timeout_ms)
        self._clock = clock
        self._run_id = run_id
        self._timeout_ms = timeout_ms
        self._began_us = clock.monotonic_us()
        self._until_us = None if timeout_ms is None else clock.monotonic_us() + to_us(timeout_ms)
        self._subscription = database.changes.subscribe(wake)
        self._unsubscribe_clock = clock.subscribe(wake)

    def __enter__(self) -> Self:
        self._subscription.active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._subscription.active = False
        self._subscription.close()
        self._unsubscribe_clock()

    def result_of(self, status: RunStatus) -> RunResult | None:
        """Return the result; None to wait on. Raises TimeoutError when that has lasted too long."""
        if isinstance(status, Completed):
            return status.result
        if self._until_us is not None and self._clock.monotonic_us() >= self._until_us:
            raise TimeoutError(
                f"run {self._run_id} has not ended within {self._timeout_ms:g} ms; `get` tells what becomes of it, "
                "and if no worker knows its action (blocked_by)"
            )
        return None

    def pause_s(self) -> float:
        """Return how long to wait for a wake-up before looking anyway."""
        now_us = self._clock.monotonic_us()
        pause_s = min(_POLL_S, max(_FIRST_PAUSE_S, (now_us - self._began_us) / 1e6 / _PATIENCE))
        if self._until_us is None:
            return pause_s
        return min(pause_s, max(_SHORTEST_PAUSE_S, (self._until_us - now_us) / 1e6))
