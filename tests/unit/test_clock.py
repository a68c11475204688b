"""The clock by which leases end."""

import time

import pytest

from action_retrier._clock import boot_time_us


def test_where_no_clock_goes_on_in_a_sleep_the_monotonic_one_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS, for one: processes share that one too."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)

    before = time.monotonic_ns() // 1000
    now = boot_time_us()

    assert before <= now <= time.monotonic_ns() // 1000
