"""The heartbeat: renews a worker's lease from a thread of its own, which blocked user code cannot stop."""

import threading
from collections.abc import Callable
from contextlib import suppress

from .config import logger
from .drivers import Leases
from .errors import DatabaseUnavailable

HEARTBEAT_S = 3.0
_AGAIN_S = 0.5
"""After how long a renewal that failed is tried again: a worker whose lease has run out starts nothing before it."""
_TOLD_EVERY = 60
"""Of renewals in vain, one after the other, this many make one line of the log: an outage may last."""


class Heartbeat:
    """Renews the lease of one worker until it is stopped."""

    def __init__(self, leases: Leases, worker: str, *, is_wanted: Callable[[], bool], lost: Callable[[], None]) -> None:
        """
        Take the lease.

        Args:
            leases: Where the lease is.
            worker: Whose lease it is.
            is_wanted: Tells whether there is still somebody to hold it for; when not, it ends.
            lost: Called, in the heartbeat's thread, when the lease may have ended.
        """
        self._leases = leases
        self._worker = worker
        self._is_wanted = is_wanted
        self._lost = lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="action-retrier-heartbeat", daemon=True)
        leases.acquire(worker)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, signed_off: bool = True) -> None:
        """End, and give up the lease."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._leases.release(self._worker, signed_off=signed_off)

    def _beat(self) -> None:
        with suppress(Exception):  # the next renewal says it too
            self._leases.announce(self._worker)
        in_vain = 0
        while not self._stop.wait(min(_AGAIN_S, HEARTBEAT_S) if in_vain else HEARTBEAT_S):
            if not self._is_wanted():
                # The event loop is gone without a goodbye: let others have the runs.
                self._leases.release(self._worker, signed_off=False)
                return
            try:
                renewed = self._leases.renew(self._worker)
            except (OSError, DatabaseUnavailable) as error:
                if in_vain % _TOLD_EVERY == 0:
                    logger.warning("the lease of worker %s could not be renewed: %s", self._worker, error)
                in_vain += 1
                continue
            except Exception:  # noqa: BLE001 - the loop's boundary: without a heartbeat the worker would do nothing for ever
                logger.exception("the lease of worker %s could not be renewed", self._worker)
                continue
            if in_vain:
                logger.info("worker %s reaches its lease again, after %d renewals in vain", self._worker, in_vain)
                in_vain = 0
            if not renewed:
                self._lost()
