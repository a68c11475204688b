"""The heartbeat lives on, whatever a renewal raises."""

import threading
from typing import Any

import pytest

from action_retrier import _leases
from action_retrier._leases import Heartbeat

LIMIT_S = 30


class Leases:
    """Leases whose renewals raise what no driver should."""

    def __init__(self) -> None:
        self.renewals = 0
        self.went_on = threading.Event()

    def acquire(self, worker: str) -> None: ...
    def release(self, worker: str) -> None: ...

    def announce(self, worker: str) -> None:
        raise LookupError("a bug")

    def renew(self, worker: str) -> bool:
        self.renewals += 1
        if self.renewals < 3:
            raise LookupError("a bug")
        self.went_on.set()
        return True


def test_an_unexpected_error_does_not_end_the_heartbeat(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it the lease would run out, and the worker claim nothing for ever."""
    monkeypatch.setattr(_leases, "HEARTBEAT_S", 0.001)
    leases: Any = Leases()
    heartbeat = Heartbeat(leases, "w", is_wanted=lambda: True, lost=lambda: None)
    heartbeat.start()

    assert leases.went_on.wait(LIMIT_S)
    heartbeat.stop()
    assert "could not be renewed" in caplog.text
