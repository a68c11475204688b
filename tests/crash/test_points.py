"""
A worker is killed at each named point of what it does, and a fresh one finishes everything.

Each case says what the kill leaves behind and what it costs: nothing before a claim has committed, one attempt from
then until the report has committed, and nothing any more after that.
"""

import signal
from dataclasses import dataclass

import pytest
from crash_processes import eventually
from crash_program import call

pytestmark = pytest.mark.crash

KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Case:
    """
    A point, and what a death there leads to.

    Attributes:
        script: What the action does.
        state: The run's, right after the death; *callback* likewise.
        executions: How often the action has begun in the end.
        losses: How many attempts the death has cost.
    """

    point: str
    script: tuple[str, ...] = ("return",)
    state: str = "running"
    callback: str = "none"
    executions: int = 1
    losses: int = 1


FREE = {"state": "pending", "losses": 0}
"""Nothing has happened to the run yet."""

AGAIN = {"executions": 2}
"""It had begun: the side effect may happen twice."""

OVER = {"losses": 0}
"""It is safe: nothing is done again."""

PLAIN = [
    Case("register.before", **FREE),
    Case("register.before_commit", **FREE),
    Case("register.after_commit", **FREE),
    Case("lease.before", **FREE),
    Case("lease.after", **FREE),
    Case("claim.before", **FREE),
    Case("claim.before_commit", **FREE),
    Case("claim.after_commit"),
    Case("action.before"),
    Case("action.begin", **AGAIN),
    Case("action.end", **AGAIN),
    Case("report.before", **AGAIN),
    Case("report.before_commit", **AGAIN),
    Case("report.after_commit", state="succeeded", **OVER),
    Case("report.before", script=("raise", "return"), **AGAIN),
    Case("report.before_commit", script=("raise", "return"), **AGAIN),
    Case("report.after_commit", script=("raise", "return"), state="pending", executions=2, losses=0),
]


IN_A_THREAD = {"action.begin", "action.end"}
"""Points at which it makes a difference whether the action is ``def`` or ``async def``."""


@pytest.mark.parametrize(
    ("case", "action"),
    [
        pytest.param(case, action, id=f"{case.point}-{action}-{case.script[0]}")
        for case in PLAIN
        for action in ("work", "work_sync")
        if action == "work" or case.point in IN_A_THREAD
    ],
)
def test_a_run_survives_the_death_of_its_worker_at(scene, case, action):
    scene.prepare()
    run_id = scene.run(*case.script, action=action, on_complete=None)

    assert scene.worker(die=case.point).wait() == KILLED
    left = scene.row(run_id)["state"]
    story = scene.finish()[run_id]

    assert (left, story.row["state"]) == (case.state, "succeeded")
    assert (story.executions, story.losses) == (case.executions, case.losses)


CALLING_BACK = [
    Case("report.before", **AGAIN),
    Case("callback.begin", **AGAIN),
    Case("callback.end", **AGAIN),
    Case("report.before_commit", **AGAIN),
    Case("report.after_commit", state="succeeded", callback="done", **OVER),
]


@pytest.mark.parametrize(
    ("case", "callback"),
    [
        pytest.param(case, callback, id=f"{case.point}-{callback}")
        for case in CALLING_BACK
        for callback in ("record", "record_async", "record_shared")
        if callback == "record" or case.point in {"callback.begin", "callback.end", "report.after_commit"}
    ],
)
def test_a_callback_counts_once_when_its_worker_dies_at(scene, case, callback):
    """The outcome and the callback's writes commit together: either neither is there, or both are."""
    scene.prepare()
    run_id, neighbour = scene.start(call("return", on_complete=callback), call("return", on_complete=callback))

    assert scene.worker(die=case.point).wait() == KILLED
    left = scene.check_halfway()
    stories = scene.finish()

    # Serializable callbacks are called in transactions of their own, one after the other: the neighbour comes later.
    first = max((left[run_id], left[neighbour]), key=lambda story: story.row["state"])
    assert (first.row["state"], first.row["callback_state"]) == (case.state, case.callback)
    first = stories[first.row["id"]]
    assert (first.executions, first.losses) == (case.executions, case.losses)
    assert {story.row["state"] for story in stories.values()} == {"succeeded"}


ALONE = [
    ("callback_claim.before", 0),
    ("callback_claim.before_commit", 0),
    ("callback_claim.after_commit", 1),
    ("callback_done.before", 1),
    ("callback.begin", 1),
    ("callback.end", 1),
    ("callback_done.before_commit", 1),
    ("callback_done.after_commit", 1),
]


@pytest.mark.parametrize(("point", "tries"), ALONE)
def test_a_pending_callback_counts_once_when_its_worker_dies_at(scene, point, tries):
    scene.prepare()
    run_id = scene.run("return")
    scene.cancel(run_id)

    assert scene.worker(die=point).wait() == KILLED
    left = scene.check_halfway()[run_id]
    story = scene.finish()[run_id]

    done = point == "callback_done.after_commit"
    assert (left.row["callback_state"], left.row["callback_tries"]) == ("done" if done else "pending", tries)
    assert (story.row["state"], story.executions, story.effects) == ("canceled", 0, ["canceled"])


@pytest.mark.parametrize("point", ["callback_postponed.before", "callback_postponed.before_commit"])
def test_a_callback_that_raised_is_tried_again_when_its_worker_dies_at(scene, point):
    scene.prepare()
    run_id = scene.run("return", context=["raise", "return"])
    scene.cancel(run_id)

    assert scene.worker(die=point).wait() == KILLED
    assert scene.row(run_id)["callback_state"] == "pending"
    assert scene.finish()[run_id].effects == ["canceled"]


@pytest.mark.parametrize("point", ["claim.before_commit", "claim.after_commit", "action.begin", "report.before_commit"])
def test_a_run_that_has_cost_a_worker_survives_another_death_at(scene, point):
    """Suspects are claimed by a statement of their own, and their outcome is committed before the callback."""
    scene.prepare()
    run_id = scene.run("return")

    assert scene.worker(die="action.begin").wait() == KILLED
    # The first report of this one is its own: recovery is written by others of its statements.
    assert scene.worker(die=point).wait() == KILLED
    story = scene.finish()[run_id]

    losses = 1 if point == "claim.before_commit" else 2
    assert (story.row["state"], story.losses, story.effects) == ("succeeded", losses, ["success"])


@pytest.mark.parametrize("point", ["recover.before", "recover.before_commit", "recover.after_commit"])
def test_recovery_is_taken_over_when_its_worker_dies_at(scene, point):
    scene.prepare()
    run_ids = scene.start(*[call("hold", "return") for _ in range(3)])
    first = scene.worker()
    eventually(lambda: len(scene.lines("begin")) == len(run_ids))
    first.kill()

    assert scene.worker(die=point).wait() == KILLED
    stories = scene.finish()

    assert [stories[run_id].losses for run_id in run_ids] == [1, 1, 1]
    assert [stories[run_id].executions for run_id in run_ids] == [2, 2, 2]


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", ["heartbeat.before", "heartbeat.after"])
def test_a_worker_may_die_in_its_heartbeat(scene, point, nth):
    scene.prepare()
    run_id = scene.run("hold", "return")

    # On PostgreSQL the first renewal is at once.
    worker = scene.worker(die=point, nth=nth + (scene.database.kind == "postgres"), lease_s=1)
    assert worker.wait() == KILLED
    story = scene.finish()[run_id]

    assert (story.row["state"], story.losses) == ("succeeded", 1)


@pytest.mark.parametrize("point", ["sign_off.before", "sign_off.before_commit", "sign_off.after_commit"])
def test_a_worker_may_die_when_it_signs_off(scene, point):
    scene.prepare()
    run_id = scene.run("hold", "return")
    worker = scene.worker("--grace-ms", 0, die=point)
    scene.wait_for_executions(run_id, 1)

    worker.signal(signal.SIGTERM)
    assert worker.wait() == KILLED
    story = scene.finish()[run_id]

    assert (story.row["state"], [one["error_type"] for one in story.attempts]) == ("succeeded", ["WorkerStopped"])


@pytest.mark.parametrize("point", ["expire.before_commit", "expire.after_commit"])
def test_a_run_past_its_deadline_fails_once_when_its_worker_dies_at(scene, point):
    scene.prepare()
    run_id = scene.run("return", deadline_ms=1)

    assert scene.worker(die=point).wait() == KILLED
    story = scene.finish()[run_id]

    assert (story.row["state"], story.row["error_type"], story.executions) == ("failed", "DeadlineExceeded", 0)


@pytest.mark.parametrize("point", ["prune.before_commit", "prune.after_commit"])
def test_retention_removes_all_of_a_run_or_nothing_when_its_worker_dies_at(scene, point):
    scene.prepare()
    old, young = scene.run("raise", "return"), scene.run("return")
    scene.finish()
    scene.make_old(old)
    scene.started.remove(old)

    assert scene.worker(die=point).wait() == KILLED

    attempts = [row["run_id"] for row in scene.rows("SELECT run_id FROM action_retrier_attempts")]
    assert (scene.ids(), attempts) == (([old, young], [old]) if point == "prune.before_commit" else ([young], []))


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("migrate.statement", 1),
        ("migrate.statement", 2),
        ("migrate.statement", 4),
        ("migrate.before_commit", 1),
        ("migrate.after_commit", 1),
    ],
)
def test_a_schema_is_complete_or_absent_when_the_process_that_creates_it_dies_at(scene, point, nth):
    assert scene.program("--die", point, "--nth", nth, "open").wait() == KILLED
    tables = scene.database.tables()
    scene.prepare()
    run_id = scene.run("return")

    assert tables == (4 if point == "migrate.after_commit" else 0)
    assert scene.finish()[run_id].row["state"] == "succeeded"


@pytest.mark.parametrize(
    ("point", "is_there"),
    [("start.before", False), ("start.before_commit", False), ("start.after_commit", True)],
)
def test_a_start_is_there_or_not_when_the_caller_dies_at(scene, point, is_there):
    scene.prepare()

    assert scene.program("--die", point, "start", "return").wait() == KILLED
    scene.started += scene.ids()

    assert len(scene.started) == is_there
    assert all(story.effects == ["success"] for story in scene.finish().values())


@pytest.mark.parametrize(("point", "is_there"), [("own.before_commit", False), ("own.after_commit", True)])
def test_a_run_and_the_order_it_is_for_share_their_fate_when_the_caller_dies_at(scene, point, is_there):
    scene.prepare()

    assert scene.program("--die", point, "start", "--own-transaction", "return").wait() == KILLED
    scene.started += scene.ids()

    orders = [row["run_id"] for row in scene.rows("SELECT run_id FROM orders")]
    assert orders == scene.started
    assert len(orders) == is_there
    scene.finish()
