"""The heartbeat lives on, whatever a renewal raises, and says what somebody who reads the log has to know."""

import logging
import threading
from typing import Any

import pytest

from action_retrier import DatabaseUnavailable, _leases
from action_retrier._leases import Heartbeat

LIMIT_S = 30


class Leases:
    """Leases whose first renewals raise."""

    def __init__(self, error: Exception, times: int) -> None:
        self._error = error
        self._times = times
        self.renewals = 0
        self.went_on = threading.Event()

    def acquire(self, worker: str) -> None: ...
    def release(self, worker: str) -> None: ...

    def announce(self, worker: str) -> None:
        raise self._error

    def renew(self, worker: str) -> bool:
        self.renewals += 1
        if self.renewals <= self._times:
            raise self._error
        if self.renewals > self._times + 1:  # what is said of the first success has been said
            self.went_on.set()
        return True


def beat(leases: Any) -> None:
    heartbeat = Heartbeat(leases, "w", is_wanted=lambda: True, lost=lambda: None)
    heartbeat.start()
    try:
        assert leases.went_on.wait(LIMIT_S)
    finally:
        heartbeat.stop()


def test_an_unexpected_error_does_not_end_the_heartbeat(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it the lease would run out, and the worker claim nothing for ever."""
    monkeypatch.setattr(_leases, "HEARTBEAT_S", 0.001)

    beat(Leases(LookupError("a bug"), times=2))

    assert "could not be renewed" in caplog.text


def test_an_outage_is_told_now_and_then_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Many workers that write a line each 3 s are hard to read when it matters."""
    monkeypatch.setattr(_leases, "HEARTBEAT_S", 0.001)

    with caplog.at_level(logging.INFO, logger="action_retrier"):
        beat(Leases(DatabaseUnavailable(problem="connection refused", remedy="start the server"), times=12))

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
    assert caplog.records[-1].getMessage() == "worker w reaches its lease again, after 12 renewals in vain"
