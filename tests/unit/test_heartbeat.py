"""The heartbeat: what it says while the database is away, and when it is back."""

import logging
import threading

import pytest

from action_retrier import DatabaseUnavailable, _leases
from action_retrier._leases import Heartbeat


class Outage:
    """Leases that cannot be renewed so many times."""

    def __init__(self, lasts: int) -> None:
        self._lasts = lasts
        self.is_over = threading.Event()

    def acquire(self, worker: str) -> None: ...

    announce = release = acquire

    def renew(self, worker: str) -> bool:
        if self._lasts > 0:
            self._lasts -= 1
            raise DatabaseUnavailable(problem="connection refused", remedy="start the server")
        if self._lasts < 0:
            self.is_over.set()
        self._lasts -= 1
        return True


def test_an_outage_is_told_now_and_then_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twenty workers that write a line each 3 s are hard to read when it matters."""
    monkeypatch.setattr(_leases, "HEARTBEAT_S", 0.0)
    outage = Outage(12)
    heartbeat = Heartbeat(outage, "w", is_wanted=lambda: True, lost=pytest.fail)  # type: ignore[arg-type]

    with caplog.at_level(logging.INFO, logger="action_retrier"):
        heartbeat.start()
        assert outage.is_over.wait(30)
        heartbeat.stop()

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
    assert caplog.records[-1].getMessage() == "worker w reaches its lease again, after 12 renewals in vain"
