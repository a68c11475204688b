"""A process that has executed a great many runs has in use what it had after a few."""

import gc
import json
import operator

import psutil
import pytest
from crash_processes import LIMIT_S, eventually

from action_retrier import App, SyncActionRetrier

pytestmark = pytest.mark.crash

ROUNDS, SIZE = 10, 10_000
WARM_UP = 6
"""Rounds until SQLite has filled its caches, a few MB in all, as the file grows."""
MOST_BYTES = 100
"""For each run after the warm-up: SQLite's caches still grow a little with the file."""
MOST_BLOCKS = 0.05
"""Of Python's own memory, for each run: far less than one, which would be an object that each leaves behind."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_runs_leak_nothing(scene, capsys):
    """Each round has a worker of its own, which starts and stops."""
    scene.prepare()
    process = scene.processes.start("crash_leaks.py", scene.database.url, ROUNDS, SIZE)
    in_use = [json.loads(process.wait_for("in-use", count=number + 1, within_s=90)) for number in range(ROUNDS)]
    assert process.wait(LIMIT_S) == 0

    first, last = in_use[WARM_UP - 1], in_use[-1]
    with capsys.disabled():
        print(f"\n{ROUNDS * SIZE} runs: after {WARM_UP * SIZE} {first}, in the end {last}")
    assert scene.count("SELECT count(*) FROM action_retrier_runs WHERE state = 'succeeded'") == ROUNDS * SIZE
    assert last["threads"] <= first["threads"]
    assert last["descriptors"] <= first["descriptors"]
    runs = (ROUNDS - WARM_UP) * SIZE
    assert last["blocks"] - first["blocks"] <= runs * MOST_BLOCKS
    assert last["memory"] - first["memory"] <= runs * MOST_BYTES


def test_databases_that_are_opened_and_closed_one_after_another_leave_nothing_open(scene, tmp_path):
    """As the tests of a program that uses this library do."""
    process = psutil.Process()

    def use(number):
        url = f"sqlite:///{tmp_path / str(number)}.db" if scene.database.kind == "sqlite" else scene.database.url
        app = App(url)
        retrier = SyncActionRetrier(app)

        @app.action(name="answer")
        def answer() -> int:
            return 42

        with app, app.worker() as worker:
            run_id = retrier.run(app, answer)
            worker.until_idle()
            assert retrier.get(app, run_id).state == "succeeded"

    def in_use():
        gc.collect()
        return process.num_fds(), process.num_threads()

    for number in range(3):
        use(number)
    before = in_use()
    for number in range(3, 13):
        use(number)

    eventually(lambda: all(map(operator.le, in_use(), before)), what=f"{in_use()} go back to {before}")
