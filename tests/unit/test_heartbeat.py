"""The heartbeat lives on, whatever a renewal raises; what it says while the database is away, and when it is back."""

import logging
import queue
import threading
from types import ModuleType
from typing import Any

import pytest

from action_retrier import DatabaseUnavailable, _leases
from action_retrier._leases import Heartbeat
from action_retrier.drivers.postgres import leases as postgres_leases
from action_retrier.drivers.sqlite import leases as sqlite_leases

LIMIT_S = 30


@pytest.mark.parametrize("leases", [postgres_leases, sqlite_leases])
def test_a_lease_outlasts_three_heartbeats(leases: ModuleType) -> None:
    """One may get lost, and the next one come late; its owner gives it up before others take it."""
    assert 3 * _leases.HEARTBEAT_S * 1_000_000 <= leases.LEASE_US
    assert 2 * _leases.HEARTBEAT_S * 1_000_000 <= leases.LEASE_US - leases.MARGIN_US < leases.LEASE_US


class Leases:
    """Leases whose renewals raise what no driver should."""

    def __init__(self) -> None:
        self.renewals = 0
        self.went_on = threading.Event()

    def acquire(self, worker: str) -> None: ...
    def release(self, worker: str, *, signed_off: bool = True) -> None: ...

    def announce(self, worker: str) -> None:
        raise LookupError("a bug")

    def renew(self, worker: str) -> bool:
        self.renewals += 1
        if self.renewals < 3:
            raise LookupError("a bug")
        self.went_on.set()
        return True


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the lease is what is judged
def test_an_unexpected_error_does_not_end_the_heartbeat(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it the lease would run out, and the worker claim nothing for ever."""
    monkeypatch.setattr(_leases, "HEARTBEAT_S", 0.001)
    leases: Any = Leases()
    heartbeat = Heartbeat(leases, "w", is_wanted=lambda: True, lost=lambda: None)
    heartbeat.start()

    assert leases.went_on.wait(LIMIT_S), "I1: a worker that lives keeps its lease, whatever a renewal raises"
    heartbeat.stop()
    assert "could not be renewed" in caplog.text


def test_a_lease_whose_worker_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop that was closed without a goodbye: others may have the runs at once."""
    monkeypatch.setattr(_leases, "HEARTBEAT_S", 0.001)
    told: queue.SimpleQueue[bool] = queue.SimpleQueue()
    leases: Any = Leases()
    leases.release = lambda worker, *, signed_off: told.put(signed_off)
    heartbeat = Heartbeat(leases, "w", is_wanted=lambda: False, lost=pytest.fail)

    heartbeat.start()

    assert told.get(timeout=LIMIT_S) is False
    assert leases.renewals == 0


class Outage:
    """Leases that cannot be renewed so many times."""

    def __init__(self, lasts: int) -> None:
        self._lasts = lasts
        self.is_over = threading.Event()

    def acquire(self, worker: str) -> None: ...
    def release(self, worker: str, *, signed_off: bool = True) -> None: ...

    announce = acquire

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
    outage = Outage(61)
    heartbeat = Heartbeat(outage, "w", is_wanted=lambda: True, lost=pytest.fail)  # type: ignore[arg-type]

    with caplog.at_level(logging.INFO, logger="action_retrier"):
        heartbeat.start()
        assert outage.is_over.wait(LIMIT_S)
        heartbeat.stop()

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]
    assert caplog.records[-1].getMessage() == "worker w reaches its lease again, after 61 renewals in vain"
