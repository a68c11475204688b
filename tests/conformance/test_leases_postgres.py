"""Leases on PostgreSQL: the lock of a session tells a death at once, the time stamp in the row tells all else."""

import asyncio
import contextlib
import os
import resource
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from action_retrier._ids import new_worker_id
from action_retrier._ops.claims import ANY_LOSSES, Claimant, Claimed, claim_callbacks, claim_runs
from action_retrier._ops.control import cancel_run
from action_retrier._ops.starts import start_runs
from action_retrier._ops.workers import register_worker
from action_retrier._statements import Op, Rows
from action_retrier.drivers import Database, open_database
from action_retrier.drivers.postgres import leases as module
from action_retrier.drivers.postgres.leases import LEASE_US
from action_retrier.drivers.postgres.line import Line
from action_retrier.errors import DatabaseUnavailable

from ..stores import LIMIT_S, NAMESPACE, Store, in_thread, until
from .boot import HEARTBEAT_US, Boot


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Boot:
    boot = Boot()
    monkeypatch.setattr(module, "boot_time_us", boot)
    return boot


class Process:
    """A worker's process: its lease and its row."""

    def __init__(self, store: Store, query: str = "") -> None:
        self._store = store
        url = store.system.url + query
        self.database: Database = open_database(url, clock=store.clock, auto_migrate=True)
        self.claimant = Claimant(new_worker_id(), NAMESPACE, '["charge"]', '["done"]')
        self.database.open()
        self.database.leases.acquire(self.id)
        self.database.write_sync(lambda: register_worker(self.claimant, "a host", 1))
        self.renew()

    @property
    def id(self) -> str:
        return self.claimant.id

    def renew(self) -> bool:
        return self.database.leases.renew(self.id)

    def dies(self) -> None:
        """Let go of everything, as the end of a process does."""
        self.database.close()

    def has_been_silent_for(self, us: int) -> None:
        with self._store.system.connect() as connection:
            connection.execute(
                f"UPDATE {self._store.system.schema}.workers SET renewed_at = renewed_at - %s WHERE id = %s",  # noqa: S608 - a name of ours
                (us, self.id),
            )


@pytest.fixture
def judge(store: Store, boot: Boot) -> Iterator[Process]:
    process = Process(store)
    yield process
    process.database.close()


@pytest.fixture
def worker(store: Store, boot: Boot, judge: Process) -> Iterator[Process]:
    process = Process(store)
    yield process
    process.database.close()


def dead(judge: Process, *workers: Process) -> list[str]:
    return asyncio.run(judge.database.leases.dead([one.id for one in workers]))


def watch(boot: Boot, judge: Process, *workers: Process) -> None:
    """Have the judge look for as long as a lease lasts."""
    dead(judge, *workers)
    for _ in range(4):
        boot.now_us += HEARTBEAT_US
        judge.renew()


class Server:
    """How long the server has been up, as a test wants it; the tests' own may have been started a second ago."""

    def __init__(self) -> None:
        self.up_for_us = LEASE_US


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server, look = Server(), module.PostgresLeases._is_dead

    def is_dead(self: Any, row: dict[str, Any], *args: Any, **kwargs: Any) -> bool:
        return look(self, row | {"server_up_for": server.up_for_us}, *args, **kwargs)

    monkeypatch.setattr(module.PostgresLeases, "_is_dead", is_dead)
    return server


def test_a_worker_that_holds_its_lease_lives(boot: Boot, judge: Process, worker: Process) -> None:
    for _ in range(5):
        assert dead(judge, worker) == []
        boot.now_us += LEASE_US


def test_a_worker_whose_session_has_ended_is_dead_at_the_second_look(
    store: Store, boot: Boot, judge: Process, worker: Process
) -> None:
    """Not at the first: it may be about to open its line again. A second apart at least."""
    worker.dies()
    until(lambda: not _is_held(store, worker))

    assert dead(judge, worker) == []
    boot.now_us += 900_000
    assert dead(judge, worker) == []
    boot.now_us += 100_000
    assert dead(judge, worker) == [worker.id]


def test_a_sign_of_life_between_the_looks_counts(store: Store, boot: Boot, judge: Process, worker: Process) -> None:
    """A heartbeat without a lock: its session broke, and it will take the lock again."""
    line = worker.database.changes.line
    with line.connection() as connection:
        connection.execute("SELECT pg_advisory_unlock_all()")
    assert dead(judge, worker) == []
    boot.now_us += 600_000
    worker.renew()
    boot.now_us += 600_000

    assert dead(judge, worker) == []
    boot.now_us += 1_000_000
    assert dead(judge, worker) == [worker.id]


def test_behind_a_pooler_only_the_lease_counts(store: Store, boot: Boot, judge: Process) -> None:
    pooled = Process(store, "&direct=false")
    pooled.dies()
    for _ in range(3):
        assert dead(judge, pooled) == []
        boot.now_us += 2_000_000
        judge.renew()
    boot.now_us += 2_000_000
    judge.renew()
    boot.now_us += 2_000_000
    assert dead(judge, pooled) == []

    pooled.has_been_silent_for(LEASE_US)
    watch(boot, judge, pooled)

    assert dead(judge, pooled) == [pooled.id]


def test_of_those_that_are_no_more_nothing_is_kept(store: Store, boot: Boot, judge: Process, worker: Process) -> None:
    """Workers come and go for as long as a process lives; whoever signs off is not asked after again."""
    other = Process(store)
    other.dies()
    until(lambda: not _is_held(store, other))
    assert dead(judge, worker, other) == []
    leases: Any = judge.database.leases
    assert set(leases._unchanged_since) == {worker.id, other.id}

    assert dead(judge, worker) == []

    assert (set(leases._unchanged_since), set(leases._free_since)) == ({worker.id}, set())


def test_a_servers_clock_that_is_set_forward_kills_nobody(boot: Boot, judge: Process, worker: Process) -> None:
    """Everybody seems to have been silent until the next heartbeat."""
    watch(boot, judge, worker)
    worker.renew()
    assert dead(judge, worker) == []

    worker.has_been_silent_for(LEASE_US)
    assert dead(judge, worker) == []
    boot.now_us += HEARTBEAT_US
    assert dead(judge, worker) == []
    worker.renew()
    watch(boot, judge)
    assert dead(judge, worker) == []


def test_a_servers_clock_that_is_set_back_by_an_hour_does_not_keep_the_dead_alive(
    store: Store, boot: Boot, judge: Process
) -> None:
    pooled = Process(store, "&direct=false")
    pooled.dies()
    pooled.has_been_silent_for(-3_600_000_000)
    assert dead(judge, pooled) == []
    for _ in range(3):
        boot.now_us += HEARTBEAT_US
        judge.renew()
        assert dead(judge, pooled) == []
    boot.now_us += HEARTBEAT_US
    judge.renew()

    assert dead(judge, pooled) == [pooled.id]


def test_silence_is_judged_only_after_one_lease_without_a_gap(boot: Boot, judge: Process, worker: Process) -> None:
    """After an outage of the server everybody is silent."""
    worker.has_been_silent_for(LEASE_US)
    assert dead(judge, worker) == []

    boot.now_us += 30_000_000  # the outage
    judge.renew()
    assert dead(judge, worker) == []
    for _ in range(3):
        boot.now_us += HEARTBEAT_US
        judge.renew()
        assert dead(judge, worker) == []
    boot.now_us += HEARTBEAT_US
    judge.renew()

    assert dead(judge, worker) == [worker.id]


def test_who_has_no_lease_of_its_own_does_not_judge_silence(store: Store, boot: Boot, worker: Process) -> None:
    worker.has_been_silent_for(LEASE_US)

    assert asyncio.run(store.database.leases.dead([worker.id])) == []
    assert asyncio.run(store.database.leases.silent([worker.id])) == [worker.id]


def test_after_a_restart_of_the_server_a_free_lock_says_nothing(
    store: Store, boot: Boot, judge: Process, worker: Process, server: Server
) -> None:
    """Everybody's session has ended with it."""
    worker.dies()
    until(lambda: not _is_held(store, worker))
    server.up_for_us = LEASE_US - 1
    for _ in range(3):
        assert dead(judge, worker) == []
        boot.now_us += 1_000_000

    server.up_for_us = LEASE_US
    assert dead(judge, worker) == []
    boot.now_us += 1_000_000
    assert dead(judge, worker) == [worker.id]


def test_a_worker_without_a_row_is_dead(store: Store, boot: Boot, judge: Process) -> None:
    """It finds that out by itself, and takes a new id."""
    unknown = new_worker_id()

    assert asyncio.run(judge.database.leases.dead([unknown])) == [unknown]


def test_a_renewal_that_finds_no_row_tells(store: Store, worker: Process) -> None:
    with store.system.connect() as connection:
        connection.execute(f"DELETE FROM {store.system.schema}.workers WHERE id = %s", (worker.id,))  # noqa: S608 - a name of ours

    assert worker.renew() is False


def test_a_worker_whose_lease_has_run_out_claims_nothing(store: Store, worker: Process) -> None:
    """It may have been recovered the next moment. It is not taken for dead by itself, either: its row is there."""
    run_id, suspect = store.start(), store.start()
    store.system.overwrite(suspect, losses=1, failures=1)
    owing = store.start(on_complete="done")
    store.write(cancel_run, NAMESPACE, owing)
    worker.has_been_silent_for(LEASE_US)

    def claim() -> Op[tuple[Claimed, Rows]]:
        claimed = yield from claim_runs(worker.claimant, 2, ANY_LOSSES)
        return claimed, (yield from claim_callbacks(worker.claimant, 1, ANY_LOSSES))

    claimed, callbacks = worker.database.write_sync(claim)
    assert (claimed.runs, claimed.suspects, claimed.registered, callbacks) == ([], [], True, [])

    worker.renew()
    claimed, callbacks = worker.database.write_sync(claim)
    assert [row["id"] for row in [*claimed.suspects, *claimed.runs, *callbacks]] == [suspect, run_id, owing]


def test_the_line_takes_the_lock_again_when_it_breaks(store: Store, worker: Process) -> None:
    """At once, without waiting for a heartbeat: others look every quarter of a second."""
    with worker.database.changes.line.connection() as connection:
        pid = connection.info.backend_pid
    with store.system.connect(autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))

    until(lambda: _is_held(store, worker, other_than=pid))


def test_a_lock_that_an_earlier_session_still_has_is_taken_when_that_ends(
    store: Store, boot: Boot, judge: Process, worker: Process
) -> None:
    """Until then only the lease counts: the end of that session is not the worker's."""
    key = module.lock_key(worker.id)
    with store.system.connect(autocommit=True) as earlier, store.system.connect(autocommit=True) as admin:
        with worker.database.changes.line.connection() as connection:
            pid = connection.info.backend_pid
        has_it = in_thread(earlier.execute, "SELECT pg_advisory_lock(%s)", (key,))
        until(store.system.waits_for_a_lock)
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
        has_it.result(LIMIT_S)
        with contextlib.suppress(DatabaseUnavailable):  # the first use may be what notices
            worker.renew()
        assert worker.renew()
        (row,) = [row for row in store.system.table("workers") if row["id"] == worker.id]
        assert not row["is_direct"]
        assert _is_held(store, worker)
        had_it = earlier.info.backend_pid

    until(lambda: _is_held(store, worker, other_than=had_it))
    assert worker.renew()
    (row,) = [row for row in store.system.table("workers") if row["id"] == worker.id]
    assert row["is_direct"]


@pytest.mark.parametrize("isolation", ["repeatable\\ read", "serializable"])
def test_a_renewal_waits_for_who_writes_the_row_whatever_the_roles_isolation(
    store: Store, judge: Process, isolation: str
) -> None:
    """The worker itself does, to tell that it sleeps: a snapshot from before that must not end the heartbeat."""
    worker = Process(store, "&options=" + quote(f"-c default_transaction_isolation={isolation}"))
    with store.system.connect() as writer:
        writer.execute(f"UPDATE {store.system.schema}.workers SET is_idle = true WHERE id = %s", (worker.id,))  # noqa: S608 - a name of ours
        renewed = in_thread(worker.renew)
        until(store.system.waits_for_a_lock)

    assert renewed.result(LIMIT_S) is True
    worker.database.close()


def test_many_descriptors_do_not_keep_the_line_busy(
    store: Store, judge: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 1024 on, `select` refuses a descriptor; the line must not go round without waiting."""
    looks: list[object] = []
    look = Line._look
    monkeypatch.setattr(Line, "_look", lambda self, seen: (looks.append(seen), look(self, seen)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2048, limits[0]), limits[1]))
    with contextlib.ExitStack() as many:
        many.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        while many.enter_context(open(os.devnull)).fileno() < 1024:  # noqa: PTH123 - a descriptor is all that is wanted
            pass
        heard = threading.Event()
        worker = Process(store)
        many.callback(worker.database.close)
        subscription = worker.database.changes.subscribe(heard.set)
        subscription.active = True
        asyncio.run(subscription.tune(worker.id, busy=False))
        for _ in range(5):
            heard.clear()
            with judge.database.transaction_sync() as transaction:
                transaction.run_sync(start_runs(NAMESPACE, [store.starting()]))
            assert heard.wait(LIMIT_S)

    assert len(looks) < 50


def _is_held(store: Store, worker: Process, other_than: int = 0) -> bool:
    key = module.lock_key(worker.id) & 0xFFFF_FFFF_FFFF_FFFF
    with store.system.connect(autocommit=True) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s AND pid <> %s",
            (key >> 32, key & 0xFFFF_FFFF, other_than),
        ).fetchall()
    return bool(found)
