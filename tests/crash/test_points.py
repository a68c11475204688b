"""
A worker is killed at each named point of what it does, and a fresh one finishes everything.

Each case says what the kill leaves behind and what it costs: nothing before a claim has committed, one attempt from
then until the report has committed, and nothing any more after that.
"""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_points import SQLITE
from crash_processes import eventually
from crash_program import call

from action_retrier.drivers.postgres import leases as postgres_leases
from action_retrier.testing import failpoints

pytestmark = pytest.mark.crash

KILLED = -signal.SIGKILL


@pytest.fixture(autouse=True)
def looks_close_together(monkeypatch):
    """Whoever finishes here need not wait for a second look: it knows who has died."""
    monkeypatch.setattr(postgres_leases, "_LOOKS_APART_US", 50_000)


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
    Case("action.after", **AGAIN),
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
    Case("callback.before", **AGAIN),
    Case("callback.begin", **AGAIN),
    Case("callback.end", **AGAIN),
    Case("callback.after", **AGAIN),
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


@pytest.mark.parametrize(
    "point", ["callback_postponed.before", "callback_postponed.before_commit", "callback_postponed.after_commit"]
)
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


@pytest.mark.parametrize("point", ["expire.before", "expire.before_commit", "expire.after_commit"])
def test_a_run_past_its_deadline_fails_once_when_its_worker_dies_at(scene, point):
    scene.prepare()
    run_id = scene.run("return", deadline_ms=1)

    assert scene.worker(die=point).wait() == KILLED
    story = scene.finish()[run_id]

    assert (story.row["state"], story.row["error_type"], story.executions) == ("failed", "DeadlineExceeded", 0)


@pytest.mark.parametrize("point", ["prune.before", "prune.before_commit", "prune.after_commit"])
def test_retention_removes_all_of_a_run_or_nothing_when_its_worker_dies_at(scene, point):
    scene.prepare()
    old, young = scene.run("raise", "return"), scene.run("return")
    scene.finish()
    scene.make_old(old)
    scene.started.remove(old)

    assert scene.worker(die=point).wait() == KILLED

    attempts = [row["run_id"] for row in scene.rows("SELECT run_id FROM action_retrier_attempts")]
    assert (scene.ids(), attempts) == (([young], []) if point == "prune.after_commit" else ([old, young], [old]))


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("migrate.before", 1),
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


@pytest.mark.parametrize(
    ("point", "is_canceled"),
    [
        ("cancel.before", False),
        ("cancel.before_commit", False),
        ("cancel.after_commit", True),
        ("cancel_all.before", False),
        ("cancel_all.before_commit", False),
        ("cancel_all.after_commit", True),
    ],
)
def test_a_run_is_canceled_or_goes_on_when_the_caller_dies_at(scene, point, is_canceled):
    scene.prepare()
    run_id = scene.run("return")

    assert scene.program("--die", point, "do", point.partition(".")[0], run_id).wait() == KILLED
    story = scene.finish()[run_id]

    state, effect = ("canceled", "canceled") if is_canceled else ("succeeded", "success")
    assert (story.row["state"], story.executions, story.effects) == (state, 0 if is_canceled else 1, [effect])


@pytest.mark.parametrize(
    ("point", "is_due"), [("retry.before", False), ("retry.before_commit", False), ("retry.after_commit", True)]
)
def test_a_run_that_backs_off_is_due_or_waits_when_the_caller_dies_at(scene, point, is_due):
    scene.prepare()
    run_id = scene.run("raise", "return", initial_backoff_ms=600_000, max_backoff_ms=600_000)
    program = scene.here()
    with program.app, program.app.worker():
        eventually(lambda: scene.row(run_id)["failures"] == 1, what="a failure")
    program.close()

    assert scene.program("--die", point, "do", "retry", run_id).wait() == KILLED
    if not is_due:
        assert scene.row(run_id)["state"] == "pending"
        assert scene.program("do", "retry", run_id).wait() == 0

    assert scene.finish()[run_id].executions == 2


@pytest.mark.parametrize(
    ("point", "is_there"),
    [("retry_all.before", False), ("retry_all.before_commit", False), ("retry_all.after_commit", True)],
)
def test_a_failed_run_starts_afresh_or_stays_failed_when_the_caller_dies_at(scene, point, is_there):
    scene.prepare()
    run_id = scene.run("raise", "return", max_failures=0)
    scene.finish()

    assert scene.program("--die", point, "do", "retry_all", run_id).wait() == KILLED

    row = scene.row(run_id)
    assert (row["state"], row["callback_state"]) == (("pending", "none") if is_there else ("failed", "done"))


@pytest.mark.parametrize(
    ("point", "is_there"), [("cleanup.before", True), ("cleanup.before_commit", True), ("cleanup.after_commit", False)]
)
def test_cleanup_removes_all_of_a_run_or_nothing_when_the_caller_dies_at(scene, point, is_there):
    scene.prepare()
    run_id = scene.run("raise", "return")
    scene.finish()

    assert scene.program("--die", point, "do", "cleanup", run_id).wait() == KILLED

    attempts = [row["run_id"] for row in scene.rows("SELECT run_id FROM action_retrier_attempts")]
    assert (scene.ids(), attempts) == (([run_id], [run_id]) if is_there else ([], []))


@pytest.mark.parametrize("point", ["announce.before", "announce.before_commit", "announce.after_commit"])
def test_a_worker_may_die_when_it_tells_what_it_has_learned(scene, point):
    scene.prepare()

    assert scene.worker("--register-late", die=point).wait() == KILLED
    run_id = scene.run("return")

    assert scene.finish()[run_id].executions == 1


@pytest.mark.parametrize("point", ["progress.before", "progress.before_commit", "progress.after_commit"])
def test_a_worker_may_die_when_it_writes_progress(scene, point):
    scene.prepare()
    run_id = scene.run("progress 30", "return")

    assert scene.worker(die=point).wait() == KILLED
    progress = scene.row(run_id)["progress"]
    story = scene.finish()[run_id]

    assert progress == (0.5 if point == "progress.after_commit" else None)
    assert (story.executions, story.losses) == (2, 1)


@pytest.mark.parametrize(
    ("point", "losses"),
    [("give_back.before", 1), ("give_back.before_commit", 1), ("give_back.after_commit", 0)],
)
def test_a_run_that_nobody_knew_was_claimed_costs_no_more_when_its_worker_dies_at(scene, point, losses):
    """The answer of a claim was lost: its worker gives back what it finds to be its own."""
    scene.prepare()
    run_id = scene.run("return")

    assert scene.worker(die=point, lose="claim.after_commit").wait() == KILLED
    story = scene.finish()[run_id]

    assert (story.row["state"], story.executions, story.losses) == ("succeeded", 1, losses)


@pytest.mark.parametrize(
    "point",
    ["callback_given_back.before", "callback_given_back.before_commit", "callback_given_back.after_commit"],
)
def test_a_callback_that_nobody_knew_was_claimed_counts_once_when_its_worker_dies_at(scene, point):
    scene.prepare()
    run_id = scene.run("return")
    scene.cancel(run_id)

    assert scene.worker(die=point, lose="callback_claim.after_commit").wait() == KILLED

    assert scene.finish()[run_id].effects == ["canceled"]


def test_no_failpoint_is_left_out():
    """Each is named here, or in the module that is about SQLite."""
    points = {*failpoints(), *(f"{step}.{moment}" for step in SQLITE for moment in ("before", "after"))}
    here = Path(__file__)
    text = here.read_text("utf-8") + here.with_name("test_points_sqlite.py").read_text("utf-8")

    assert points - set(re.findall(r'"(\w+\.\w+)"', text)) == set()
