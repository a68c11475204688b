"""A network that is slow, that breaks, and that swallows everything without a word."""

import signal
import time

import pytest
from crash_processes import eventually
from crash_program import Program, call

pytestmark = pytest.mark.crash

CUTS = 30
WORKERS = 3
NOT_BACK_S = 4
TAKEN_OVER_WITHIN_S = 15


@pytest.fixture
def program(scene, proxy):
    """A program that reaches the database through the proxy."""
    program = Program(proxy.url, scene.folder)
    with program.app:
        yield program
        proxy.flow()
    program.close()


def some_calls(count):
    callbacks = [None, "record", "record_async", "record_shared"]
    return [call("raise", "return", on_complete=callbacks[number % 4]) for number in range(count)]


def test_a_slow_network_costs_time_and_nothing_else(scene, proxy, program):
    proxy.latency_s = 0.02
    with program.app.worker():
        scene.started += program.start(some_calls(8))
        scene.wait_until_complete()

    assert [story.executions for story in scene.verdict().values()] == [2] * 8


def test_connections_that_break_all_the_time_lose_nothing_and_repeat_nothing(scene, proxy, program):
    """All of them, whatever they are in the middle of."""
    with program.app.worker():
        for _ in range(CUTS):
            scene.started += program.start(some_calls(8))
            proxy.cut()
        scene.wait_until_complete()

    stories = scene.verdict()
    assert len(stories) == 8 * CUTS
    assert {(story.row["state"], story.losses) for story in stories.values()} == {("succeeded", 0)}
    # A claim whose answer was lost is given back: its attempt has a number, and neither began nor failed.
    assert [story.executions for story in stories.values()] == [1 + story.row["failures"] for story in stories.values()]


@pytest.mark.slow
@pytest.mark.parametrize("away_s", [2, 13])
def test_after_an_outage_nobody_takes_the_living_for_dead(scene, proxy, away_s):
    """Everybody's lock is gone, and if it was long enough everybody's lease: who comes back first must not judge."""
    eventually(scene.database.tells_death)
    workers = [
        scene.processes.start("crash_program.py", proxy.url, "worker", "--concurrency", 3) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.wait_for("worker")
    run_ids = scene.start(*[call("deaf") for _ in range(3 * WORKERS)])
    eventually(lambda: len(scene.lines("begin")) == 3 * WORKERS)

    proxy.refuses = True
    proxy.cut()
    back_at = time.monotonic() + away_s
    eventually(lambda: time.monotonic() >= back_at, what="the outage has lasted long enough")
    # One after the other comes back: the last one is not connected again for seconds.
    workers[-1].signal(signal.SIGSTOP)
    proxy.refuses = False
    judged_at = time.monotonic() + NOT_BACK_S
    eventually(lambda: time.monotonic() >= judged_at, what="the others have looked around")
    workers[-1].signal(signal.SIGCONT)
    scene.release()
    scene.wait_until_complete()
    for worker in workers:
        worker.stop()

    assert "is dead" not in scene.processes.logs()
    assert [scene.verdict()[run_id].row["attempt"] for run_id in run_ids] == [1] * len(run_ids)


@pytest.mark.slow
@pytest.mark.parametrize("callback", [False, True])
def test_a_network_that_swallows_everything_costs_a_worker_its_runs_and_nothing_more(scene, proxy, callback, capsys):
    """No connection ends, so that nothing but a deadline of one's own tells that anything is wrong."""
    alone = scene.processes.start("crash_program.py", proxy.url, "worker")
    alone.wait_for("worker")
    run_id = scene.run("return", context=["deaf", "return"]) if callback else scene.run("deaf", "return")
    eventually(lambda: scene.lines("callback" if callback else "begin", run_id))
    other = scene.worker()
    other.wait_for("worker")

    proxy.swallow()
    swallowed_at_us = scene.now_us()
    scene.wait_until_complete(within_s=2 * TAKEN_OVER_WITHIN_S)
    before = scene.row(run_id)
    again = scene.lines("begin", run_id)[-1]
    scene.release()
    proxy.flow()
    alone.wait_for("worker", count=2)
    (own,) = scene.start(call("return"))
    scene.wait_until_complete()
    alone.stop()
    other.stop()

    with capsys.disabled():
        print(f"\neverything swallowed: the run began elsewhere after {(again.at_us - swallowed_at_us) / 1e6:.1f} s")
    assert scene.row(run_id) == before
    stories = scene.verdict()
    assert again.pid == other.pid
    assert (again.at_us - swallowed_at_us) / 1e6 <= TAKEN_OVER_WITHIN_S
    assert stories[run_id].effects == stories[own].effects == ["success"]
