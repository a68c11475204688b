"""Many processes on one file: they open it at once, and they all get their turn."""

import json
import sqlite3
import time
from collections import Counter

import crash_oracle
import pytest
from crash_processes import eventually
from crash_program import Program, call

from action_retrier import DatabaseUnavailable
from action_retrier.drivers.sqlite import writer

pytestmark = pytest.mark.crash

WORKERS = 4
GATED_S = 3.0
"""How long anybody may wait among processes that write through their apps only, which queue fairly."""
BESIDE_OTHERS_S = 10.0
"""How long where others write through connections of their own: those do not queue, and never pause here."""
AT_ONCE_S = 5.0
SHORT_LEASE_S = 1.0


def start_at_once(scene, *roles, seconds=0):
    """Start processes that wait for each other."""
    processes = [scene.processes.start("crash_hammer.py", scene.database, role, "--seconds", seconds) for role in roles]
    for process in processes:
        process.wait_for("ready")
    for process in processes:
        process.tell()
    return processes


def test_ten_processes_that_open_a_new_file_at_once_all_work(scene):
    """The schema is created once, under a lock."""
    processes = start_at_once(scene, *["first"] * 10)

    assert [process.wait() for process in processes] == [0] * 10, scene.processes.logs()
    logs = scene.processes.logs()
    assert logs.count("is in place") == 1
    assert "Traceback" not in logs
    with crash_oracle.connected(scene.database) as connection:
        rows = connection.execute("SELECT state, attempt FROM action_retrier_runs").fetchall()
        installations = connection.execute("SELECT count(*) FROM action_retrier_meta WHERE key = 'installation'")
        assert installations.fetchone()[0] == 1
    assert [row["state"] for row in rows] == ["succeeded"] * 10  # one that stops gives back what it had just claimed


def hammer(scene, capsys, *, seconds, starters, owners, worst_start_s):
    scene.prepare()
    begun_at = time.monotonic()
    workers = start_at_once(scene, *["work"] * WORKERS)
    users = start_at_once(scene, *["start"] * starters, *["order"] * owners, seconds=seconds)

    assert [user.wait(seconds + 60) for user in users] == [0] * len(users), scene.processes.logs()
    scene.started += scene.ids()
    eventually(lambda: crash_oracle.is_quiet(scene.database), within_s=4 * seconds + 60, what="all runs ended")
    took_s = time.monotonic() - begun_at
    for worker in workers:
        worker.tell()
        assert worker.wait() == 0
    stories = scene.verdict()

    count, worst_s = Counter(), Counter()
    for user in users:
        figures = json.loads(user.said("figures")[0])
        count.update(figures["count"])
        worst_s |= Counter(figures["worst_s"])  # the larger one of each
    with capsys.disabled():
        waits = ", ".join(f"{what} {worst_s[what]:.2f} s" for what in sorted(worst_s))
        print(
            f"\n{starters} that start, {owners} with connections of their own and {WORKERS} workers, for {seconds} s: "
            f"{len(stories)} runs done in {took_s:.0f} s; worst waits: {waits}"
        )
    assert len(stories) == count["start"] + count["begin"]
    with crash_oracle.connected(scene.database) as connection:
        orders = {row["run_id"] for row in connection.execute("SELECT run_id FROM orders")}
    assert len(orders) == count["begin"]
    assert orders <= stories.keys()
    # No live worker was taken for dead, so nothing was done twice.
    logs = scene.processes.logs()
    assert [text for text in ("locked", "is dead", "taken for dead", "Traceback") if text in logs] == []
    assert [len(worker.said("worker")) for worker in workers] == [1] * WORKERS
    assert {(story.row["state"], story.executions) for story in stories.values()} == {("succeeded", 1)}
    assert max(worst_s["start"], worst_s["read"]) <= worst_start_s


def test_sixteen_processes_that_write_through_their_apps_get_their_turns(scene, capsys):
    """They queue on the gate, so that nobody waits for long."""
    hammer(scene, capsys, seconds=4, starters=12, owners=0, worst_start_s=GATED_S)


def test_sixteen_processes_on_one_file_get_their_turns(scene, capsys):
    hammer(scene, capsys, seconds=6, starters=6, owners=6, worst_start_s=BESIDE_OTHERS_S)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixteen_processes_on_one_file_get_their_turns_for_a_minute(scene, capsys):
    hammer(scene, capsys, seconds=60, starters=6, owners=6, worst_start_s=BESIDE_OTHERS_S)


def test_a_connection_that_keeps_the_write_lock_for_longer_than_a_lease_kills_nobody(scene):
    """Heartbeats do not go through the database, so that those who wait for it stay alive."""
    scene.prepare()
    run_ids = scene.start(*[call("take 0.1", "return") for _ in range(6)])
    workers = [scene.worker("--concurrency", 2, lease_s=SHORT_LEASE_S) for _ in range(3)]
    for worker in workers:
        worker.wait_for("worker")
    with crash_oracle.connected(scene.database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        hold_until = time.monotonic() + 3 * SHORT_LEASE_S
        eventually(lambda: time.monotonic() >= hold_until, what="three leases passed")
        connection.rollback()
    scene.wait_until_complete()
    for worker in workers:
        worker.stop()

    stories = scene.verdict()
    assert [stories[run_id].row["attempt"] for run_id in run_ids] == [1] * 6
    assert [len(worker.said("worker")) for worker in workers] == [1] * 3


@pytest.fixture
def program(scene):
    scene.prepare()
    program = Program(scene.database)
    with program.app:
        yield program
    program.close()


@pytest.fixture
def connection(scene, program):
    """A connection of the user's own that begins its transactions itself."""
    connection = sqlite3.connect(scene.database, isolation_level=None)
    yield connection
    connection.close()


def test_a_transaction_that_read_before_somebody_wrote_is_told_why_it_may_not_write(program, connection):
    """However long it waited, SQLite could not let it: it gets that told at once, and the remedy."""
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM orders").fetchone()
    program.start([call("return")])

    begun_at = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="BEGIN IMMEDIATE") as caught:
        program.retrier.run_many(connection, [call("return")])

    assert "after this transaction had read it" in str(caught.value)
    assert time.monotonic() - begun_at < AT_ONCE_S
    # Rolled back and repeated as told, it works.
    connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    (run_id,) = program.retrier.run_many(connection, [call("return")])
    connection.execute("COMMIT")
    assert program.retrier.get(program.app, run_id).state == "pending"


def test_a_transaction_that_read_while_somebody_writes_is_told_why_it_may_not_write(scene, program, connection):
    connection.execute("PRAGMA busy_timeout = 100")
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM orders").fetchone()
    with crash_oracle.connected(scene.database) as writing:
        writing.execute("BEGIN IMMEDIATE")

        with pytest.raises(DatabaseUnavailable, match="BEGIN IMMEDIATE"):
            program.retrier.run_many(connection, [call("return")])

        writing.rollback()
    connection.execute("ROLLBACK")


def test_somebody_who_reads_for_long_keeps_no_writer_waiting(program, connection, monkeypatch):
    """The WAL cannot be emptied meanwhile; whoever tries gives up at once, since it holds up all the others."""
    monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", 0)
    monkeypatch.setattr(writer, "_CHECKPOINT_PAUSE_S", 0)
    monkeypatch.setattr(writer, "_TRUNCATE_BYTES", 0)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM orders").fetchone()

    begun_at = time.monotonic()
    program.start([call("return")])
    program.start([call("return")])

    assert time.monotonic() - begun_at < AT_ONCE_S
    connection.execute("ROLLBACK")


def test_python_s_own_way_to_begin_waits_for_its_turn(scene, program):
    """A connection that begins implicitly is begun for writing by the first call, and so may wait."""
    with crash_oracle.connected(scene.database) as connection:
        run_ids = program.retrier.run_many(connection, [call("return")])
        connection.execute("INSERT INTO orders (run_id) VALUES (?)", (run_ids[0],))
        connection.commit()

    assert program.retrier.get(program.app, run_ids[0]).state == "pending"
