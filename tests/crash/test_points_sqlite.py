"""A worker is killed at points that only SQLite's driver has: its lock files, its WAL, its checkpoints."""

import os
import signal
import time

import pytest
from crash_processes import eventually
from crash_program import call

pytestmark = pytest.mark.crash

KILLED = -signal.SIGKILL


def test_a_worker_that_dies_before_it_has_written_its_first_time_stamp_costs_nothing(scene):
    scene.prepare()
    run_id = scene.run("return", on_complete=None)

    assert scene.worker(die="stamp.before").wait() == KILLED
    left = scene.row(run_id)["state"]
    story = scene.finish()[run_id]

    assert (left, story.row["state"], story.executions, story.losses) == ("pending", "succeeded", 1, 0)


@pytest.mark.parametrize("point", ["stamp.before", "stamp.after", "register.before"])
def test_a_worker_that_dies_before_it_has_a_row_leaves_no_file_for_ever(scene, point):
    """Nobody finds it by its row, so it is found by its file, once nobody has touched that for a lease."""
    scene.prepare()
    assert scene.worker(die=point).wait() == KILLED
    (left,) = scene.folder.glob("*-workers/*.lock")
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))

    other = scene.worker()
    eventually(lambda: not left.exists(), what="the end of the file")
    other.stop()

    assert list(scene.folder.glob("*-workers/*.lock")) == []


@pytest.mark.parametrize(("point", "nth"), [("stamp.before", 1), ("stamp.after", 1), ("stamp.before", 2)])
def test_a_worker_may_die_when_it_writes_a_time_stamp(scene, point, nth):
    scene.prepare()
    run_id = scene.run("hold", "return")

    # Taking the lease writes the first one.
    assert scene.worker(die=point, nth=nth + 1, lease_s=1).wait() == KILLED
    story = scene.finish()[run_id]

    assert (story.row["state"], story.losses) == ("succeeded", 1)


@pytest.mark.parametrize("point", ["checkpoint.before", "checkpoint.after"])
@pytest.mark.parametrize("nth", [1, 3])
def test_a_worker_may_die_around_a_checkpoint(scene, point, nth):
    scene.prepare()
    scene.start(*[call("raise", "return") for _ in range(5)])

    assert scene.worker(die=point, nth=nth).wait() == KILLED
    assert {story.row["state"] for story in scene.finish().values()} == {"succeeded"}


@pytest.mark.parametrize("point", ["wal.before", "wal.after"])
def test_a_file_has_no_table_when_the_process_that_switches_it_to_wal_dies_at(scene, point):
    assert scene.program("--die", point, "open").wait() == KILLED
    tables = scene.database.tables()
    scene.prepare()
    run_id = scene.run("return")

    assert tables == 0
    assert scene.finish()[run_id].row["state"] == "succeeded"
