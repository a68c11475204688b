"""A storm of kills over a fleet at work: nothing is lost, callbacks count once, and recovery is quick."""

import random
import statistics
import time
from itertools import pairwise

import pytest
from crash_processes import eventually
from crash_program import call
from crash_witness import read_log

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

RUNS = 2000
KILLS = 50
WORKERS = 4
CONCURRENCY = 10
MEDIAN_S = 2
MAX_S = 11
LONG_S = 1


def some_call(rng):
    """Make up a run: what its action and its callback do, and in which colours."""
    takes = f"take {rng.uniform(0.01, 0.2):.3f}"
    script = rng.choice([["return"], [takes], [takes], ["raise", takes], ["raise", "raise", "return"]])
    callback = rng.choice([None, "record", "record", "record_async", "record_shared"])
    context = rng.choice([["return"], ["return"], ["raise", "return"]])
    action = rng.choice(["work", "work", "work_sync"])
    return call(*script, action=action, on_complete=callback, context=context, max_failures=50)


def executing(scene, workers):
    """Return those of the workers that execute something."""
    under_way = {}
    for line in read_log(scene.folder):
        under_way.setdefault(line.pid, set())
        if line.event == "begin":
            under_way[line.pid].add(line.run_id)
        else:
            under_way[line.pid].discard(line.run_id)
    return [worker for worker in workers if under_way.get(worker.pid)]


def recovery_times_s(stories, killed_at_us):
    """Return, for each execution that a kill cut off, the time from the kill to the run's next execution."""
    times = []
    for story in stories.values():
        begun = [line for line in story.lines if line.event == "begin"]
        lost = {one["number"] for one in story.attempts if one["error_type"] == "WorkerLost"}
        times += [
            (again.at_us - killed_at_us[line.pid]) / 1e6 for line, again in pairwise(begun) if line.attempt in lost
        ]
    return times


def test_a_storm_of_kills_loses_nothing(scene, capsys):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    started_at = time.monotonic()
    scene.prepare()
    options = ("--concurrency", CONCURRENCY)
    workers = [scene.worker(*options) for _ in range(WORKERS)]
    killed_at_us = {}

    for number in range(KILLS):
        for worker in workers:  # the next one dies when the fleet is whole again
            worker.wait_for("worker")
        # One that takes long, so that somebody is at work when we look, however fast the machine is.
        scene.start(call(f"take {LONG_S}", max_failures=50), *[some_call(rng) for _ in range(RUNS // KILLS - 1)])
        victim = rng.choice(eventually(lambda: executing(scene, workers), what="somebody executes something"))
        killed_at_us[victim.pid] = victim.kill()
        workers[workers.index(victim)] = scene.worker(*options)
        if number % 10 == 9:
            scene.check_halfway()
    scene.wait_until_complete(within_s=90)
    took_s = time.monotonic() - started_at
    for worker in workers:
        worker.stop()
    stories = scene.verdict()

    times = sorted(recovery_times_s(stories, killed_at_us))
    p50, p95, worst = statistics.median(times), times[int(len(times) * 0.95)], times[-1]
    with capsys.disabled():
        print(
            f"\nstorm {seed}: {len(stories)} runs, {KILLS} kills in {took_s:.0f} s, {len(times)} executions cut off; "
            f"recovery p50 {p50:.2f} s, p95 {p95:.2f} s, max {worst:.2f} s; "
            f"at most {max(story.losses for story in stories.values())} losses of one run"
        )
    assert len(stories) == RUNS
    assert {story.row["state"] for story in stories.values()} == {"succeeded"}
    assert len(times) >= KILLS
    assert p50 <= MEDIAN_S
    assert worst <= MAX_S
