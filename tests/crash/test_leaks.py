"""A process that has executed a great many runs has in use what it had after a few."""

import json

import pytest
from crash_processes import LIMIT_S

ROUNDS, SIZE = 10, 10_000
WARM_UP = 6
"""Rounds until SQLite has filled its caches, a few MB in all, as the file grows."""
MOST_BYTES = 50
"""For each run after the warm-up: less than one object that each leaves behind."""


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(900)
def test_a_hundred_thousand_runs_leak_nothing(scene, capsys):
    """Each round has a worker of its own, which starts and stops."""
    scene.prepare()
    process = scene.processes.start("crash_leaks.py", scene.database, ROUNDS, SIZE)
    in_use = [json.loads(process.wait_for("in-use", count=number + 1, within_s=90)) for number in range(ROUNDS)]
    assert process.wait(LIMIT_S) == 0

    first, last = in_use[WARM_UP - 1], in_use[-1]
    with capsys.disabled():
        print(f"\n{ROUNDS * SIZE} runs: after {WARM_UP * SIZE} {first}, in the end {last}")
    assert scene.count("SELECT count(*) FROM action_retrier_runs WHERE state = 'succeeded'") == ROUNDS * SIZE
    assert last["threads"] <= first["threads"]
    assert last["descriptors"] <= first["descriptors"]
    runs = (ROUNDS - WARM_UP) * SIZE
    assert last["objects"] - first["objects"] <= runs / 100
    assert last["memory"] - first["memory"] <= runs * MOST_BYTES
