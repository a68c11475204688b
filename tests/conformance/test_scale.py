"""What a database holds that is not due now costs claims and polls nothing."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from action_retrier._lifecycle import Succeeded
from action_retrier._ops.control import prune_runs
from action_retrier._ops.reports import expire_runs
from action_retrier._ops.starts import start_runs
from action_retrier.testing import ManualClock

from ..stores import NAMESPACE, SqliteSystem, Store

LIMIT_MS = 5.0
RATIO = 10
TIMES = 30


def fill(system: SqliteSystem, now_us: int, *, completed: int, scheduled: int, unknown: int) -> None:
    """Insert runs in bulk: completed ones, ones for later (half at a higher priority), due ones of no known action."""
    connection = system.connect()
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -200000")
    kinds = {
        "c": (completed, "'charge'", "0", "'succeeded'", "0", ":now - 1000000", "'1'"),
        "s": (scheduled, "'charge'", "n % 2 * 7", "'pending'", "n * 1000 + 3600000000", "NULL", "NULL"),
        "u": (unknown, "'unknown' || n % 3", "n % 2 * 5", "'pending'", "-n", "NULL", "NULL"),
    }
    for letter, (count, action, priority, state, due, completed_at, result) in kinds.items():
        connection.execute(
            f"""
            WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
            INSERT INTO action_retrier_runs (id, namespace, action, queue, priority, state, created_at, due_at,
                                             completed_at, options, args, result)
            SELECT printf('01{letter}00000-%04x-7000-8000-%012x', n % 65536, n), '{NAMESPACE}', {action}, 'default',
                   {priority}, {state}, :now, :now + {due}, {completed_at}, '{{"max_failures":4}}', '{{}}', {result}
              FROM numbers
            """,  # noqa: S608 - numbers and names of this test's own
            {"now": now_us},
        )
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def median_ms(call: Callable[[], Any], times: int = TIMES) -> float:
    """Return how long a call takes, half of the time."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


class Scene:
    """A store of a certain size, with some runs that are due."""

    def __init__(self, folder: Path, **sizes: int) -> None:
        self.clock = ManualClock()
        self.system = SqliteSystem(folder)
        self.store = Store(self.system, "sync", self.clock)
        if sizes:
            fill(self.system, self.clock.now_us(), **sizes)
        self.worker = self.store.worker("charge", "refund", mutations=("done",))
        self.names = {
            "a claim": lambda: self.store.claim(self.worker, 1),
            "an idle poll": lambda: self.store.next_due(self.worker),
            "a report": self.report,
            "expiry": lambda: self.store.write(expire_runs, NAMESPACE, 1000),
            "retention": lambda: self.store.write(prune_runs, NAMESPACE, 86_400_000_000, 1000),
            "a start with a key": self.start_with_key,
        }

    def report(self) -> None:
        row = self.rows.pop()
        assert self.store.report(row, self.worker, Succeeded("1"))

    def start_with_key(self) -> None:
        self.store.start("charge", key="k", delay_ms=10**9)

    def measure(self, what: str) -> float:
        due = [self.store.starting("charge") for _ in range(TIMES)]
        self.store.write(start_runs, NAMESPACE, due)
        if what == "a report":
            self.rows = self.store.claim(self.worker, TIMES).runs
            assert len(self.rows) == TIMES
        taken = median_ms(self.names[what])
        self.store.claim(self.worker, 1000)
        return taken

    def close(self) -> None:
        self.store.close()
        self.system.close()


WHAT = ["a claim", "an idle poll", "a report", "expiry", "retention", "a start with a key"]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("empty"))
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("large"), completed=200_000, scheduled=200_000, unknown=200_000)
    yield scene
    scene.close()


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("huge"), completed=1_000_000, scheduled=1_000_000, unknown=500_000)
    yield scene
    scene.close()


@pytest.mark.parametrize("what", WHAT)
def test_what_is_not_due_costs_nothing(empty: Scene, large: Scene, what: str) -> None:
    """A few milliseconds with 600,000 runs in the way, and not many times what an empty database takes."""
    taken, least = large.measure(what), empty.measure(what)

    assert taken < LIMIT_MS
    assert taken < RATIO * max(least, 0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", WHAT)
def test_what_is_not_due_costs_nothing_at_full_size(empty: Scene, huge: Scene, what: str) -> None:
    """With 1,000,000 completed, 1,000,000 scheduled and 500,000 of unknown actions."""
    taken, least = huge.measure(what), empty.measure(what)

    assert taken < LIMIT_MS
    assert taken < RATIO * max(least, 0.1)


def test_claims_find_what_is_due_behind_all_that_is_not(large: Scene) -> None:
    """The order holds: what is due is taken, whatever waits at a higher priority."""
    store, worker = large.store, large.worker
    low, high = store.start("refund", priority=-3), store.start("charge", priority=2)

    assert store.claim_ids(worker) == [high, low]
    assert store.claim_ids(worker) == []
