"""The primary is lost under load, and its standby takes over: every run that was acknowledged is there, and ends."""

import contextlib
import threading
import time

import patroni_cluster
import pytest
from crash_database import PostgresDatabase
from crash_processes import eventually
from crash_program import call
from postgres_cluster import pair

from action_retrier import DatabaseUnavailable

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(300)]

WORKERS = 3
STARTERS = 3
BEFORE, AFTER = 300, 100
"""How many runs have been acknowledged when the primary is lost, and how many more in the end."""


@pytest.fixture(params=["standby", "patroni"])
def cluster(request):
    """A primary whose standby the test promotes, or a cluster that looks after itself."""
    if request.param == "patroni" and (problem := patroni_cluster.why_not()):
        pytest.skip(problem)
    with pair() if request.param == "standby" else patroni_cluster.patroni() as made:
        yield made


@pytest.fixture
def database(cluster):
    return PostgresDatabase(cluster.url)


class Starter:
    """Starts one run after the other, and remembers which were acknowledged, and when."""

    def __init__(self, scene):
        self.acknowledged = []
        self.refused = 0
        self._program = scene.here()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self):
        with self._program.app:
            while not self._stop.is_set():
                with contextlib.suppress(DatabaseUnavailable):
                    (run_id,) = self._program.start([call("take 0.02")])
                    self.acknowledged.append((time.monotonic_ns() // 1000, run_id))
                    continue
                self.refused += 1  # told so: it may be there, or not
        self._program.close()

    def stop(self):
        self._stop.set()
        self._thread.join()


def test_a_lost_primary_loses_no_acknowledged_run(scene, cluster, capsys):
    scene.prepare()
    workers = [scene.worker("--concurrency", 10) for _ in range(WORKERS)]
    for worker in workers:
        worker.wait_for("worker")  # one that finds no database when it starts ends, for its supervisor to see
    starters = [Starter(scene) for _ in range(STARTERS)]

    def acknowledged(since_us=0):
        return [run_id for one in starters for at_us, run_id in list(one.acknowledged) if at_us > since_us]

    try:
        eventually(lambda: len(acknowledged()) >= BEFORE and len(scene.lines("end")) >= BEFORE / 2)
        lost_at_us = scene.now_us()
        cluster.lose_primary()
        before = acknowledged()
        cluster.take_over()
        taken_over_at_us = scene.now_us()
        eventually(lambda: len(acknowledged(taken_over_at_us)) >= AFTER, within_s=60, what="starts go on")
    finally:
        for one in starters:
            one.stop()
    scene.started = acknowledged()
    scene.wait_until_complete(within_s=60)
    eventually(lambda: scene.count("SELECT count(*) FROM action_retrier_workers") == WORKERS, what="no worker is lost")
    for worker in workers:
        worker.stop()
    stories = scene.verdict()

    started_again_us = min(at_us for one in starters for at_us, _ in one.acknowledged if at_us > taken_over_at_us)
    executed_again_us = min(line.at_us for line in scene.lines("begin") if line.at_us > taken_over_at_us)
    with capsys.disabled():
        print(
            f"\n{type(cluster).__name__}: {len(scene.started)} runs acknowledged, {len(before)} of them before the primary "
            f"was lost; {sum(one.refused for one in starters)} starts refused\n"
            f"  lost to taken over {(taken_over_at_us - lost_at_us) / 1e6:.2f} s; from then to the first start "
            f"{(started_again_us - taken_over_at_us) / 1e6:.2f} s, to the first execution "
            f"{(executed_again_us - taken_over_at_us) / 1e6:.2f} s\n"
            f"  live workers taken for dead {scene.processes.logs().count('was taken for dead')}, "
            f"attempts lost {sum(story.losses for story in stories.values())}"
        )
    assert {stories[run_id].row["state"] for run_id in scene.started} == {"succeeded"}
    assert {tuple(stories[run_id].effects) for run_id in scene.started} == {("success",)}
