"""Workers that are not alike: each looks after the dead of all, whatever it can execute itself, and however busy it is."""

import pytest
from crash_processes import eventually
from crash_program import call

from action_retrier import App

pytestmark = pytest.mark.crash


def test_a_dead_workers_run_is_recovered_by_one_that_does_not_know_its_action(scene):
    """It is settled, not executed and not failed for want of a function, and waits for one who knows it."""
    scene.prepare()
    run_id = scene.run("hold", "return")
    first = scene.worker()
    scene.wait_for_executions(run_id, 1)
    first.kill()
    stranger = App(scene.database.url)
    stranger.action(name="something else")(nothing)
    with stranger, stranger.worker():
        eventually(lambda: scene.row(run_id)["state"] == "pending", within_s=30)
        left = scene.row(run_id)
    story = scene.finish()[run_id]

    assert (left["failures"], left["attempt"], left["worker"]) == (1, 1, None)
    assert (story.row["state"], story.losses, story.executions) == ("succeeded", 1, 2)


def nothing() -> None:
    """Do what nobody asks for."""


def test_a_dead_workers_runs_are_recovered_by_one_whose_only_slot_is_taken(scene):
    scene.prepare()
    held = scene.run("deaf")
    busy = scene.worker("--concurrency", 1)
    scene.wait_for_executions(held, 1)
    run_ids = scene.start(*[call("hold", "return") for _ in range(3)])
    victim = scene.worker()
    eventually(lambda: len(scene.lines("begin")) == 4)
    victim.kill()
    eventually(lambda: all(scene.row(run_id)["state"] == "pending" for run_id in run_ids), within_s=30)
    scene.release()
    scene.wait_until_complete()
    busy.stop()
    stories = scene.verdict()

    assert [(stories[run_id].losses, stories[run_id].executions) for run_id in run_ids] == [(1, 2)] * 3
    assert stories[held].row["attempt"] == 1
