"""What a server and its administrators do to a program at work: nothing of it is a run's failure."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from crash_database import PostgresDatabase
from crash_processes import eventually
from crash_program import Program, call, set_lease
from crash_scene import Scene

from action_retrier import DatabaseUnavailable, _maintenance

from ..support.postgres_server import Server, running_server

pytestmark = pytest.mark.crash

LEASE_S = 2.0
OUTAGE_S = 5.0
"""Longer than every lease."""
RESUMED_WITHIN_S = 2.0
WORKERS = 3
ROLE = "limited"
POLICY = {"max_failures": 50}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def database(server: Server) -> Iterator[PostgresDatabase]:
    """A database of the server's own."""
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE app")
    yield PostgresDatabase(urlsplit(server.url)._replace(path="/app").geturl())
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("DROP DATABASE app WITH (FORCE)")


@pytest.fixture
def admin(server: Server) -> Iterator[psycopg.Connection]:
    """An administrator, who undoes what he has set."""
    with psycopg.connect(server.url, autocommit=True) as admin:
        yield admin
        admin.execute("ALTER SYSTEM RESET ALL")
        admin.execute("SELECT pg_reload_conf()")


@pytest.fixture
def role(scene, admin) -> Iterator[str]:
    """The URL of a role that is nobody special, unlike ours; it may use the tables."""
    scene.prepare()
    admin.execute(f"CREATE ROLE {ROLE} LOGIN")
    with psycopg.connect(scene.database.url) as owner:
        owner.execute(f"GRANT USAGE ON SCHEMA action_retrier TO {ROLE}")
        owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA action_retrier, public TO {ROLE}")
        owner.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")
    yield scene.database.url.replace("postgres@", f"{ROLE}@")
    with psycopg.connect(scene.database.url) as owner:
        owner.execute(f"DROP OWNED BY {ROLE}")
    admin.execute(f"DROP ROLE {ROLE}")


@contextlib.contextmanager
def at_work(url: str, scene) -> Iterator[Program]:
    """The program with a worker, in the test's own process."""
    program = Program(url, scene.folder)
    with program.app, program.app.worker():
        yield program
    program.close()


def some_calls(count: int) -> list:
    callbacks = [None, "record", "record_async", "record_shared"]
    return [call("raise", "take 0.05", on_complete=callbacks[number % 4], **POLICY) for number in range(count)]


def have_cost_nothing(stories) -> bool:
    """Tell whether no run has lost an attempt, or was executed once more than it failed."""
    return all(
        (story.row["state"], story.losses, story.executions) == ("succeeded", 0, 1 + story.row["failures"])
        for story in stories.values()
    )


def pause(seconds: float) -> None:
    """Let time pass: the server's is not ours to move."""
    threading.Event().wait(seconds)


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGTERM, signal.SIGINT], id="smart, then fast"),
        pytest.param([signal.SIGINT], id="fast"),
        pytest.param([signal.SIGQUIT], id="immediate"),
    ],
)
def test_a_server_that_is_stopped_and_started_costs_no_run_anything(server, scene, signals):
    scene.prepare()
    with at_work(scene.database.url, scene) as program:
        scene.started += program.start([*some_calls(8), *[call("deaf", **POLICY) for _ in range(3)]])
        eventually(lambda: len(scene.lines("begin")) >= 3)
        for number in signals:
            os.kill(server.pid, number)
            pause(0.2)
        server.stop()
        server.start()
        scene.release()
        scene.wait_until_complete()

    assert have_cost_nothing(scene.verdict())


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_an_administrator_who_ends_whatever_we_do_costs_no_run_anything(scene, admin, function):
    scene.prepare()
    done = 0
    with at_work(scene.database.url, scene) as program:
        for _ in range(20):
            scene.started += program.start(some_calls(4))
            (count,) = admin.execute(
                f"SELECT count({function}(pid)) FROM pg_stat_activity WHERE datname = 'app'"  # noqa: S608
            ).fetchone()
            done += count
        scene.wait_until_complete()

    assert done > 20
    assert have_cost_nothing(scene.verdict())


def test_a_server_that_is_read_only_for_longer_than_the_lease_costs_no_run_anything(scene, admin, monkeypatch):
    """As a primary is that has become a standby: it can be reached, reads, and takes no write."""
    set_lease(LEASE_S, monkeypatch.setattr)
    scene.prepare()
    with at_work(scene.database.url, scene) as program:
        others = [scene.worker(lease_s=LEASE_S) for _ in range(2)]
        for other in others:
            other.wait_for("worker")
        scene.started += program.start([call("deaf", **POLICY) for _ in range(6)])
        eventually(lambda: len(scene.lines("begin")) == 6)

        admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        admin.execute("SELECT pg_reload_conf()")
        is_back = threading.Event()

        def start_until_back() -> None:
            # A start waits for better times as long as it may, and is then made once. A session that has not heard of
            # the change yet makes it at once.
            while not is_back.is_set():
                scene.started.extend(program.start(some_calls(4)))

        late = threading.Thread(target=start_until_back)
        late.start()
        pause(OUTAGE_S / 5)
        started = len(scene.started)
        pause(OUTAGE_S)
        scene.release()
        assert late.is_alive(), "nothing was written meanwhile"
        assert len(scene.started) == started, "something was written meanwhile"
        is_back.set()
        admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        admin.execute("SELECT pg_reload_conf()")
        back_us = scene.now_us()
        late.join()
        scene.wait_until_complete()
        begun = [line.at_us for line in scene.lines("begin") if line.at_us > back_us]
        for other in others:
            other.stop()

    stories = scene.verdict()
    assert len(stories) == len(scene.started) >= 10
    assert have_cost_nothing(stories)
    assert min(begun) - back_us <= RESUMED_WITHIN_S * 1_000_000


def outage(lease_s: float, outage_s: float, scene, server, monkeypatch, capsys) -> None:
    set_lease(lease_s, monkeypatch.setattr)
    scene.prepare()
    workers = [scene.worker("--concurrency", 4, lease_s=lease_s) for _ in range(WORKERS)]
    for worker in workers:
        worker.wait_for("worker")
    scene.start(*[call("deaf", **POLICY) for _ in range(3 * WORKERS)])
    eventually(lambda: len(scene.lines("begin")) == 3 * WORKERS)
    waiting = scene.here()
    with waiting.app:
        server.stop()
        late = threading.Thread(target=lambda: scene.started.extend(waiting.start([call("return", **POLICY)])))
        late.start()
        pause(outage_s)
        server.start()
        back_us = scene.now_us()
        late.join()
    waiting.close()
    resumed_us = eventually(lambda: [line.at_us for line in scene.lines("begin") if line.at_us > back_us])[0]
    pause(2 * lease_s)  # whoever would judge the others has had the time
    scene.release()
    scene.wait_until_complete()
    for worker in workers:
        worker.stop()

    with capsys.disabled():
        print(
            f"\nserver away for {outage_s:g} s, leases of {lease_s:g} s: resumed {(resumed_us - back_us) / 1e6:.2f} s"
        )
    assert "is dead" not in scene.processes.logs()
    stories = scene.verdict()
    assert {(story.row["attempt"], story.row["failures"]) for story in stories.values()} == {(1, 0)}
    assert resumed_us - back_us <= RESUMED_WITHIN_S * 1_000_000


def test_an_outage_longer_than_every_lease_costs_no_run_an_attempt(scene, server, monkeypatch, capsys):
    """Workers that lived through it are not taken for dead, and work goes on as soon as the server is back."""
    outage(LEASE_S, OUTAGE_S, scene, server, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("outage_s", [13, 25])
def test_an_outage_longer_than_every_lease_of_ten_seconds_costs_no_run_an_attempt(
    scene, server, monkeypatch, capsys, outage_s
):
    outage(10, outage_s, scene, server, monkeypatch, capsys)


def test_a_server_that_has_no_connection_left_for_us_costs_no_run_anything(scene, role, admin):
    """Others take ours as soon as they break, and give them back later."""
    with at_work(role, scene) as program:
        scene.started += program.start([call("deaf", **POLICY) for _ in range(3)])
        eventually(lambda: len(scene.lines("begin")) == 3)
        admin.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT 0")
        admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")  # noqa: S608
        late = threading.Thread(target=lambda: scene.started.extend(program.start(some_calls(4))))
        late.start()
        scene.release()
        pause(2)
        assert late.is_alive(), "nothing was written meanwhile"
        for limit in (1, 2, 3, 4, -1):  # fewer than it would like to have
            admin.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT {limit}")
            pause(0.3)
        late.join()
        scene.wait_until_complete()

    assert have_cost_nothing(scene.verdict())


TIME_LIMITS = {
    "statement_timeout": "250ms",
    "lock_timeout": "100ms",
    "idle_in_transaction_session_timeout": "250ms",
    "idle_session_timeout": "300ms",
    "transaction_timeout": "400ms",
}


@pytest.mark.parametrize("setting", [*TIME_LIMITS, "all"])
def test_time_limits_of_a_role_cost_no_run_anything(scene, role, admin, setting):
    """Whatever is cut short is done again, and no transaction is left open."""
    for name, value in TIME_LIMITS.items():
        if setting in {name, "all"}:
            admin.execute(f"ALTER ROLE {ROLE} SET {name} = '{value}'")
    with at_work(role, scene) as program, psycopg.connect(scene.database.url) as blocker:
        scene.started += program.start(some_calls(12))
        # Somebody's transaction holds a row for longer than any of the limits.
        blocker.execute("SELECT 1 FROM action_retrier.runs WHERE id = %s FOR UPDATE", (scene.started[-1],))
        pause(1)
        blocker.rollback()
        scene.started += program.start(some_calls(12))
        scene.wait_until_complete()
        scene.started += program.start(some_calls(4))
        scene.wait_until_complete()
        held = admin.execute(
            f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{ROLE}' AND state LIKE 'idle in%'"  # noqa: S608
            " AND state_change < clock_timestamp() - interval '1 s'"
        ).fetchone()

    assert held == (0,)
    assert have_cost_nothing(scene.verdict())


def test_a_server_that_crashes_while_a_death_is_settled_settles_it_once(server, scene, monkeypatch):
    """In the midst of it, and in the moment of its COMMIT."""
    scene.prepare()
    run_ids = scene.start(*[call("hold", "return", **POLICY) for _ in range(3)])
    first = scene.worker()
    eventually(lambda: len(scene.lines("begin")) == len(run_ids))
    recover_worker, crashes = _maintenance.recover_worker, []

    def crashing(*args):
        recovered = yield from recover_worker(*args)
        if recovered.settled and len(crashes) < 2:
            crashes.append(server.crash())
        return recovered

    monkeypatch.setattr(_maintenance, "recover_worker", crashing)
    first.kill()
    with at_work(scene.database.url, scene):
        eventually(lambda: len(crashes) == 2)
    stories = scene.finish()

    assert [(stories[run_id].losses, stories[run_id].executions) for run_id in run_ids] == [(1, 2)] * 3


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of the test's own for the data of a server, not for its log."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a disk of the test's own takes root, and mount")
    folder = Path(tempfile.mkdtemp(prefix="action-retrier-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m,mode=777", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        folder.rmdir()
        pytest.skip("this machine does not let root mount anything")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


def test_a_server_whose_disk_is_full_refuses_loudly_and_goes_on_when_there_is_room(small_disk, tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="action-retrier-wal-") as log:
        Path(log).chmod(0o777)
        server = Server(small_disk / "server")
        server.run("initdb", "-D", str(server.folder / "data"), "-U", "postgres", "-A", "trust", "-E", "utf8",
                   "--locale=C", "-N", "-X", f"{log}/wal")  # fmt: skip
        scene = Scene(tmp_path, PostgresDatabase(server.url))
        try:
            server.start()
            scene.prepare()
            with at_work(scene.database.url, scene) as program:
                scene.started += program.start([call("deaf", **POLICY) for _ in range(3)])
                eventually(lambda: len(scene.lines("begin")) == 3)
                ballast = small_disk / "ballast"
                with contextlib.suppress(OSError), ballast.open("wb") as file:
                    while True:
                        file.write(bytes(4096))
                refused = 0
                while not refused:
                    try:
                        scene.started += program.start([call("return", context=["x" * 1000] * 100) for _ in range(20)])
                    except DatabaseUnavailable as error:
                        assert "disk is full" in str(error)
                        refused += 1
                scene.release()
                ballast.unlink()
                scene.started += program.start(some_calls(8))
                scene.wait_until_complete()
            stories = scene.verdict()
        finally:
            scene.close()
            server.stop()

    assert len(stories) == len(scene.started), "what was refused is not there"
    assert {story.row["state"] for story in stories.values()} == {"succeeded"}
