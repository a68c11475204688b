"""Workers that die, stop, are forked or told to end, and the runs that survive them."""

import signal

import pytest
from crash_processes import eventually
from crash_program import call
from crash_witness import read_log

pytestmark = pytest.mark.crash

SHORT_LEASE_S = 1.5


# Death.


@pytest.mark.parametrize("action", ["work", "work_sync"])
def test_a_run_survives_three_deaths_of_its_worker_in_a_row(scene, action):
    scene.prepare()
    run_id = scene.run("hold", "hold", "hold", "return", action=action)

    for number in (1, 2, 3):
        worker = scene.worker()
        assert scene.wait_for_executions(run_id, number).attempt == number
        worker.kill()
    story = scene.finish()[run_id]

    assert (story.row["state"], story.row["attempt"], story.losses) == ("succeeded", 4, 3)
    assert story.effects == ["success"]


def test_a_run_that_loses_more_workers_than_it_may_fail_ends_as_failed(scene):
    scene.prepare()
    run_id = scene.run("hold", max_failures=2)

    for number in (1, 2, 3):
        worker = scene.worker()
        scene.wait_for_executions(run_id, number)
        worker.kill()
    story = scene.finish()[run_id]

    assert (story.row["state"], story.row["error_type"], story.executions) == ("failed", "WorkerLost", 3)
    assert story.effects == ["failed"]


def test_another_worker_notices_a_death_in_time(scene):
    """A lock tells death at once, a lock file's or an advisory one: nobody waits for the lease, but behind a pooler."""
    scene.prepare()
    eventually(scene.database.tells_death)
    run_id = scene.run("hold", "return")
    first = scene.worker()
    begun = scene.wait_for_executions(run_id, 1)
    second = scene.worker()
    second.wait_for("worker")

    killed_at_us = first.kill()
    again = scene.wait_for_executions(run_id, 2)

    assert again.pid == second.pid != begun.pid
    # On PostgreSQL the lock has to be free at two looks a second apart.
    assert (again.at_us - killed_at_us) / 1e6 <= scene.database.death_shows_s
    scene.wait_until_complete()
    second.stop()
    scene.verdict()


def test_a_death_costs_what_was_under_way_and_not_what_waits_for_slow_callbacks(scene, program):
    """Actions that are quicker than callbacks would end by the hundred, and nobody would know: all lost with the worker."""
    scene.started += program.start([call("return", context=["take 0.02"]) for _ in range(100)])

    with program.app.worker(concurrency=10):
        scene.wait_until_complete()

    unknown = most = 0
    for line in scene.verdict() and read_log(scene.folder):
        unknown += {"begin": 1, "callback": -1}.get(line.event, 0)
        most = max(most, unknown)
    assert most <= 2 * 10


# A stopped process.


def survive_a_stop(scene, action, step, lease_s):
    """Stop a worker past its lease, let another finish, continue it; return the run's story."""
    lease = {"lease_s": lease_s}
    scene.prepare()
    run_id = scene.run(step, "return", action=action)
    stopped = scene.worker("--concurrency", 1, **lease)  # no room for more: it does not write while it executes
    scene.wait_for_executions(run_id, 1)
    other = scene.worker("--queue", "default", **lease)
    other.wait_for("worker")

    stopped.signal(signal.SIGSTOP)
    scene.wait_until_complete(within_s=4 * lease_s + 10)
    before = scene.row(run_id)
    scene.release()
    stopped.signal(signal.SIGCONT)
    new_id = stopped.wait_for("worker", count=2)

    # It goes on working, under the new id.
    (own,) = scene.start(call("return", queue="own"))
    scene.wait_until_complete()
    assert [line.pid for line in scene.lines("begin", own)] == [stopped.pid]
    assert scene.row(own)["worker"] == new_id
    stopped.stop()
    other.stop()

    assert scene.row(run_id) == before
    story = scene.verdict()[run_id]
    assert [line.pid for line in story.lines if line.event == "begin"] == [stopped.pid, other.pid]
    assert (story.row["state"], story.row["attempt"], story.losses) == ("succeeded", 2, 1)
    assert story.effects == ["success"]
    return story


@pytest.mark.parametrize("action", ["work", "work_sync"])
def test_a_worker_that_was_stopped_past_its_lease_changes_nothing_and_goes_on(scene, action):
    """Its attempt returns as soon as it is continued: the report is fenced off."""
    story = survive_a_stop(scene, action, "deaf", SHORT_LEASE_S)

    # The late attempt did return, and that counted for nothing.
    assert eventually(lambda: [line.attempt for line in scene.lines("end", story.row["id"])] == [2, 1])


def test_the_attempt_of_a_worker_that_was_stopped_is_canceled(scene):
    story = survive_a_stop(scene, "work", "hold", SHORT_LEASE_S)

    assert [line.attempt for line in story.lines if line.event == "end"] == [2]


@pytest.mark.parametrize("action", ["work", "work_sync"])
def test_what_was_claimed_before_a_stop_past_the_lease_does_not_begin_after_its_heir(scene, action):
    """The claim is committed, and the process stopped before the action begins: when it goes on, it knows better."""
    scene.prepare()
    run_id = scene.run("return", action=action)
    stopped = scene.worker(stop="claim.after_commit", lease_s=SHORT_LEASE_S)
    eventually(lambda: scene.row(run_id)["state"] == "running", what="the claim")
    other = scene.worker(lease_s=SHORT_LEASE_S)
    scene.wait_until_complete(within_s=4 * SHORT_LEASE_S + 10)

    stopped.signal(signal.SIGCONT)
    stopped.wait_for("worker", count=2)
    stopped.stop()
    other.stop()

    story = scene.verdict()[run_id]
    assert [line.pid for line in story.lines if line.event == "begin"] == [other.pid]
    assert (story.row["state"], story.row["attempt"], story.losses) == ("succeeded", 2, 1)


@pytest.mark.parametrize("action", ["work", "work_sync"])
def test_an_extension_that_keeps_the_interpreter_past_the_lease_costs_its_worker_the_run(scene, action):
    """No thread of the process runs, not even the heartbeat's: others take over, and its late report changes nothing."""
    scene.prepare()
    run_id = scene.run("grip 5", "return", action=action)
    gripped = scene.worker("--concurrency", 1, lease_s=SHORT_LEASE_S)
    scene.wait_for_executions(run_id, 1)
    other = scene.worker(lease_s=SHORT_LEASE_S)

    scene.wait_until_complete()
    before = scene.row(run_id)
    eventually(lambda: [line.attempt for line in scene.lines("end", run_id)] == [2, 1])
    gripped.wait_for("worker", count=2)
    gripped.stop()
    other.stop()

    assert scene.row(run_id) == before
    story = scene.verdict()[run_id]
    assert (story.row["state"], story.row["attempt"], story.losses) == ("succeeded", 2, 1)
    assert story.effects == ["success"]


@pytest.mark.slow
@pytest.mark.parametrize("action", ["work", "work_sync"])
def test_a_worker_that_was_stopped_past_its_lease_of_ten_seconds_changes_nothing_and_goes_on(scene, action):
    survive_a_stop(scene, action, "deaf", 10)


def test_a_worker_that_was_stopped_within_its_lease_loses_nothing(scene):
    scene.prepare()
    run_id = scene.run("deaf")
    stopped = scene.worker("--concurrency", 1, lease_s=10)
    scene.wait_for_executions(run_id, 1)
    other = scene.worker(lease_s=10)

    stopped.signal(signal.SIGSTOP)
    scene.start(call("return"))
    other.wait_for("worker")
    stopped.signal(signal.SIGCONT)
    scene.release()
    scene.wait_until_complete()
    stopped.stop()
    other.stop()

    assert scene.verdict()[run_id].row["attempt"] == 1


def test_an_action_that_blocks_the_event_loop_past_the_lease_keeps_it(scene):
    """The heartbeat has a thread of its own, which blocking user code does not stop."""
    scene.prepare()
    run_id = scene.run(f"block {3 * SHORT_LEASE_S}")
    blocked = scene.worker(lease_s=SHORT_LEASE_S)
    scene.wait_for_executions(run_id, 1)
    other = scene.worker(lease_s=SHORT_LEASE_S)
    scene.wait_until_complete()
    blocked.stop()
    other.stop()

    story = scene.verdict()[run_id]
    assert (story.row["attempt"], story.losses) == (1, 0)
    assert len(blocked.said("worker")) == 1


# Forks.


@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
@pytest.mark.parametrize("end", ["exit", "_exit"])
def test_a_forked_child_of_a_process_with_an_open_app_works(scene, how, end):
    """It opens the database anew; what its parent has open goes on, and its parent's worker stays alive."""
    scene.prepare()
    parent = scene.processes.start("crash_forks.py", scene.database.url, how, end)

    assert parent.wait() == 0, parent.log.read_text()
    scene.started += parent.said("started")
    stories = scene.verdict()

    by_child = {line.pid for line in scene.lines("begin")} - {parent.pid}
    assert len(by_child) == 3
    assert len(stories) == len(scene.started) == 3 * (3 + 2)
    assert sum(story.losses for story in stories.values()) == 0
    assert "is dead" not in parent.log.read_text()
    assert "taken for dead" not in parent.log.read_text()


# Signals.


def test_a_worker_that_is_told_to_stop_lets_what_has_begun_end(scene):
    scene.prepare()
    run_ids = scene.start(call("deaf"), call("deaf", action="work_sync"))
    worker = scene.worker()
    for run_id in run_ids:
        scene.wait_for_executions(run_id, 1)

    worker.signal(signal.SIGTERM)
    worker.wait_for_log(" stops; ")
    scene.start(call("return"))
    scene.release()
    assert worker.wait() == 0

    assert [scene.row(run_id)["state"] for run_id in run_ids] == ["succeeded", "succeeded"]
    assert scene.row(scene.started[-1])["state"] == "pending"
    stories = scene.finish()
    assert [stories[run_id].row["attempt"] for run_id in scene.started] == [1, 1, 1]


def test_a_signal_between_claim_and_beginning_costs_nothing(scene):
    """What has been claimed and not begun is given back free: no failure, no attempt recorded, due as before."""
    scene.prepare()
    run_id = scene.run("return", max_failures=0)
    due_at = scene.row(run_id)["due_at"]
    worker = scene.worker("--stop-while-claiming")

    assert worker.wait() == 0
    left = scene.row(run_id)
    assert (left["state"], left["attempt"], left["failures"], left["due_at"]) == ("pending", 1, 0, due_at)
    story = scene.finish()[run_id]

    assert (story.row["state"], story.row["attempt"], story.executions) == ("succeeded", 2, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", ["hold", "deaf"])
@pytest.mark.parametrize("action", ["work", "work_sync"])
def test_an_attempt_that_outlasts_the_grace_time_fails_as_stopped(scene, number, step, action):
    """Whether it reacts or not: its process ends, and the run is free for others."""
    scene.prepare()
    run_id = scene.run(step, "return", action=action)
    worker = scene.worker("--grace-ms", 50)
    scene.wait_for_executions(run_id, 1)

    worker.signal(number)
    assert worker.wait() == 0, worker.log.read_text()
    left = scene.row(run_id)
    assert (left["state"], left["failures"], left["error_type"]) == ("pending", 1, "WorkerStopped")
    story = scene.finish()[run_id]

    assert (story.row["state"], story.executions, story.losses) == ("succeeded", 2, 0)


def test_a_second_signal_ends_the_grace_time(scene):
    scene.prepare()
    run_id = scene.run("hold", "return")
    worker = scene.worker("--grace-ms", 3_600_000)
    scene.wait_for_executions(run_id, 1)

    worker.signal(signal.SIGTERM)
    worker.wait_for_log(" stops; ")
    assert worker.is_running
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 0

    assert scene.row(run_id)["error_type"] == "WorkerStopped"
    scene.finish()
