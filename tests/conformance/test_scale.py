"""What a database holds that is not due now costs claims and polls nothing."""

import contextlib
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

from ..stores import NAMESPACE, SYSTEMS, PostgresSystem, Schemas, SqliteSystem, Store, System, open_system
from ..support.postgres_server import running_server

LIMIT_MS = 5.0
RATIO = 10
TIMES = 30


def kinds(*, completed: int, scheduled: int, unknown: int) -> dict[str, tuple[int, str, str, str, str, str, str]]:
    """Return, by a letter of their ids: how many, and their action, priority, state, due and completed_at, result."""
    return {
        "c": (completed, "'charge'", "0", "'succeeded'", "0", "{now} - 1000000", "'1'"),
        "a": (scheduled, "'charge'", "n % 2 * 7", "'pending'", "n * 1000 + 3600000000", "NULL", "NULL"),
        "b": (unknown, "'unknown' || n % 3", "n % 2 * 5", "'pending'", "-n", "NULL", "NULL"),
    }


def fill(system: System, now_us: int, **sizes: int) -> None:
    """Insert runs in bulk: completed ones, ones for later (half at a higher priority), due ones of no known action."""
    connection = system.connect()
    is_sqlite = isinstance(system, SqliteSystem)
    if is_sqlite:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
    for letter, (count, action, priority, state, due, completed_at, result) in kinds(**sizes).items():
        if is_sqlite:
            table = "action_retrier_runs"
            numbers = f"(WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) SELECT n FROM numbers)"  # noqa: S608
            run_id = f"printf('01{letter}00000-%04x-7000-8000-%012x', n % 65536, n)"
        else:
            table = f"{system.schema}.runs"  # type: ignore[attr-defined]
            numbers = f"(SELECT n FROM generate_series(1, {count}) AS n) AS numbers"  # noqa: S608
            run_id = (
                f"'01{letter}00000-' || lpad(to_hex(n % 65536), 4, '0') || '-7000-8000-' || lpad(to_hex(n), 12, '0')"
            )
        connection.execute(
            f"""
            INSERT INTO {table} (id, namespace, action, queue, priority, state, created_at, due_at,
                                 completed_at, options, args, result)
            SELECT {run_id}, '{NAMESPACE}', {action}, 'default', {priority}, {state}, {now_us}, {now_us} + {due},
                   {completed_at.format(now=now_us)}, '{{"max_failures":4}}', '{{}}', {result}
              FROM {numbers}
            """  # noqa: S608 - numbers and names of this test's own
        )
    connection.commit()
    if is_sqlite:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    else:
        connection.autocommit = True
        connection.execute(f"VACUUM ANALYZE {table}")
    connection.close()


def undisturbed_ms(call: Callable[[], Any], times: int = TIMES) -> float:
    """Return how long a call takes when nothing else happens: what is in its way costs each call the same."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1000)
    return min(taken)


class Scene:
    """A store of a certain size, with some runs that are due."""

    def __init__(self, system: System, **sizes: int) -> None:
        self.clock = ManualClock()
        self.system = system
        self.store = Store(self.system, "sync", self.clock)
        if sizes:
            fill(self.system, self.clock.now_us(), **sizes)
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

    def hire(self) -> None:
        """Have a worker whose lease is fresh; the last one's has run out, perhaps, while other scenes were made."""
        self.worker = self.store.worker("charge", "refund", mutations=("done",))

    def measure(self, what: str) -> float:
        self.hire()
        due = [self.store.starting("charge") for _ in range(TIMES)]
        self.store.write(start_runs, NAMESPACE, due)
        if what == "a report":
            self.rows = self.store.claim(self.worker, TIMES).runs
            assert len(self.rows) == TIMES
        taken = undisturbed_ms(self.names[what])
        self.store.claim(self.worker, 1000)
        return taken

    def close(self) -> None:
        self.store.close()
        self.system.close()


WHAT = ["a claim", "an idle poll", "a report", "expiry", "retention", "a start with a key"]


LARGE = {"completed": 100_000, "scheduled": 100_000, "unknown": 100_000}
HUGE = {"completed": 1_000_000, "scheduled": 1_000_000, "unknown": 500_000}


@contextlib.contextmanager
def opened(name: str, folder: Path, **sizes: int) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        if name == "postgres 16":
            server = stack.enter_context(running_server(version=16))
            schemas = Schemas(server.url)
            stack.callback(schemas.close)
            system: System = PostgresSystem(schemas)
        else:
            system = open_system(name, folder)
        with contextlib.closing(Scene(system, **sizes)) as scene:
            yield scene


@pytest.fixture(scope="module", params=SYSTEMS)
def scenes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, Scene]]:
    """An empty store, and one with much in it."""
    with (
        opened(request.param, tmp_path_factory.mktemp("empty")) as empty,
        opened(request.param, tmp_path_factory.mktemp("large"), **LARGE) as large,
    ):
        yield empty, large


@pytest.fixture(scope="module", params=[*SYSTEMS, "postgres 16"])
def huge_scenes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Scene, Scene]]:
    """An empty store, and one with a great deal in it."""
    with (
        opened(request.param, tmp_path_factory.mktemp("empty")) as empty,
        opened(request.param, tmp_path_factory.mktemp("huge"), **HUGE) as huge,
    ):
        yield empty, huge


def check(scenes: tuple[Scene, Scene], what: str) -> None:
    empty, full = scenes
    taken, least = full.measure(what), empty.measure(what)

    print(f"{what}: {taken:.2f} ms, {least:.2f} ms in an empty database")
    assert taken < max(LIMIT_MS, 2 * least)  # on a machine so busy that nothing is ever undisturbed
    assert taken < RATIO * max(least, 0.1)


@pytest.mark.parametrize("what", WHAT)
def test_what_is_not_due_costs_nothing(scenes: tuple[Scene, Scene], what: str) -> None:
    """A few milliseconds with 300,000 runs in the way, and not many times what an empty database takes."""
    check(scenes, what)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", WHAT)
def test_what_is_not_due_costs_nothing_at_full_size(huge_scenes: tuple[Scene, Scene], what: str) -> None:
    """With 1,000,000 completed, 1,000,000 scheduled and 500,000 of unknown actions."""
    check(huge_scenes, what)


def test_claims_find_what_is_due_behind_all_that_is_not(scenes: tuple[Scene, Scene]) -> None:
    """The order holds: what is due is taken, whatever waits at a higher priority."""
    _, large = scenes
    large.hire()
    store, worker = large.store, large.worker
    low, high = store.start("refund", priority=-3), store.start("charge", priority=2)

    assert store.claim_ids(worker) == [high, low]
    assert store.claim_ids(worker) == []
