"""
For tests of programs that use this library.

Time that a test owns, a worker that comes to rest, and deaths and lost answers where they hurt: docs/testing.md.
"""

from ._clock import ManualClock
from ._failpoints import failpoints
from ._faults import (
    Injected,
    NeverReached,
    crash_after,
    crash_at,
    crash_before,
    fail_after,
    fail_at,
    fail_before,
)
from ._idle import NeverIdle, run_until_idle, run_until_idle_sync
from ._isolated import isolated
from ._mortal import SimulatedCrash

__all__ = [
    "Injected",
    "ManualClock",
    "NeverIdle",
    "NeverReached",
    "SimulatedCrash",
    "crash_after",
    "crash_at",
    "crash_before",
    "fail_after",
    "fail_at",
    "fail_before",
    "failpoints",
    "isolated",
    "run_until_idle",
    "run_until_idle_sync",
]
