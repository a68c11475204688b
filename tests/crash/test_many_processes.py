"""Many processes on one database: they open it at once, and they all get their turn."""

import json
import time
from collections import Counter

import crash_oracle
import pytest
from crash_processes import eventually

pytestmark = pytest.mark.crash

WORKERS = 4
GATED_S = 3.0
"""How long anybody may wait among processes that write through their apps only, which queue fairly."""
BESIDE_OTHERS_S = 10.0
"""How long where others write through connections of their own: those do not queue, and never pause here."""


def start_at_once(scene, *roles, seconds=0):
    """Start processes that wait for each other."""
    processes = [
        scene.processes.start("crash_hammer.py", scene.database.url, role, "--seconds", seconds) for role in roles
    ]
    for process in processes:
        process.wait_for("ready")
    for process in processes:
        process.tell()
    return processes


def test_ten_processes_that_open_a_new_database_at_once_all_work(scene):
    """The schema is created once, under a lock."""
    processes = start_at_once(scene, *["first"] * 10)

    assert [process.wait() for process in processes] == [0] * 10, scene.processes.logs()
    logs = scene.processes.logs()
    assert logs.count("is in place") == 1
    assert "Traceback" not in logs
    rows = scene.rows("SELECT state FROM action_retrier_runs")
    assert scene.count("SELECT count(*) FROM action_retrier_meta WHERE key = 'installation'") == 1
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
    orders = {row["run_id"] for row in scene.rows("SELECT run_id FROM orders")}
    assert len(orders) == count["begin"]
    assert orders <= stories.keys()
    # No live worker was taken for dead, so nothing was done twice.
    logs = scene.processes.logs()
    assert [text for text in ("locked", "is dead", "taken for dead", "Traceback") if text in logs] == []
    assert [len(worker.said("worker")) for worker in workers] == [1] * WORKERS
    assert {(story.row["state"], story.executions) for story in stories.values()} == {("succeeded", 1)}
    assert max(worst_s["start"], worst_s["read"]) <= worst_start_s


@pytest.mark.storm
def test_sixteen_processes_that_write_through_their_apps_get_their_turns(scene, capsys):
    """They queue on the gate, so that nobody waits for long."""
    hammer(scene, capsys, seconds=4, starters=12, owners=0, worst_start_s=GATED_S)


@pytest.mark.storm
def test_sixteen_processes_on_one_database_get_their_turns(scene, capsys):
    hammer(scene, capsys, seconds=6, starters=6, owners=6, worst_start_s=BESIDE_OTHERS_S)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sixteen_processes_on_one_database_get_their_turns_for_a_minute(scene, capsys):
    hammer(scene, capsys, seconds=60, starters=6, owners=6, worst_start_s=BESIDE_OTHERS_S)
