"""Many processes on one file of SQLite: whoever has to wait, waits in order, and is told why it may not write."""

import contextlib
import time

import pytest
from crash_processes import eventually
from crash_program import call

from action_retrier import DatabaseUnavailable
from action_retrier.drivers.sqlite import writer

pytestmark = pytest.mark.crash

AT_ONCE_S = 5.0
SHORT_LEASE_S = 1.0


def test_a_connection_that_keeps_the_write_lock_for_longer_than_a_lease_kills_nobody(scene):
    """Heartbeats do not go through the database, so that those who wait for it stay alive."""
    scene.prepare()
    run_ids = scene.start(*[call("take 0.1", "return") for _ in range(6)])
    workers = [scene.worker("--concurrency", 2, lease_s=SHORT_LEASE_S) for _ in range(3)]
    for worker in workers:
        worker.wait_for("worker")
    with contextlib.closing(scene.database.connect()) as connection:
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
def connection(scene, program):
    """A connection of the user's own that begins its transactions itself."""
    connection = scene.database.connect(begins_itself=False)
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
    with contextlib.closing(scene.database.connect()) as writing:
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
    with contextlib.closing(scene.database.connect()) as connection:
        run_ids = program.retrier.run_many(connection, [call("return")])
        connection.execute("INSERT INTO orders (run_id) VALUES (?)", (run_ids[0],))
        connection.commit()

    assert program.retrier.get(program.app, run_ids[0]).state == "pending"
