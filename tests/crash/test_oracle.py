"""The oracle of the crash tests can fail: evidence that somebody has tampered with is refused."""

import json
import time

import pytest
from crash_oracle import examine
from crash_program import call
from crash_steps import EARLY_US, OPEN_US, steps
from crash_told import Teller, Writes
from linearizability import IN_PROGRESS, UNKNOWN

pytestmark = pytest.mark.crash


@pytest.fixture
def teller(scene):
    teller = Teller(scene.folder)
    yield teller
    teller.close()


@pytest.fixture
def run_id(scene, program, teller):
    """A run that failed once, succeeded, and called back; and its client was told of it."""
    start = teller.invoke("start", "tag", count=1)
    one = call("raise", "return")
    one.args = {**one.args, "tag": "tag"}
    (run_id,) = program.start([one])
    teller.answer(start, [run_id])
    with program.app.worker():
        program.retrier.wait(program.app, run_id, timeout_ms=30_000)
        scene.wait_until_complete([run_id])
    status = teller.invoke("status", run_id)
    teller.answer(status, "success:2")
    assert broken(scene) == set()
    return run_id


def broken(scene):
    """Return under which headings the oracle finds something."""
    return {one.rule for _, one in examine(scene.database, scene.folder)}


TAMPERING = {
    "a run that has gone": (
        "lost",
        ["DELETE FROM action_retrier_runs", "DELETE FROM crash_history WHERE state = 'removed'"],
    ),
    "a callback that was lost": ("callback", ["DELETE FROM effects"]),
    "a callback that ran twice": ("callback", ["INSERT INTO effects SELECT * FROM effects"]),
    "a callback of another outcome": ("callback", ["UPDATE effects SET outcome = 'failed'"]),
    "a callback with another result": ("callback", ["UPDATE effects SET shown = 'success:1'"]),
    "a callback that is pending": (
        "callback",
        ["UPDATE action_retrier_runs SET callback_state = 'pending', callback_due_at = 9000000000000000"],
    ),
    "a result of an attempt before": (
        "zombie",
        ["UPDATE crash_history SET note = 'success:1' WHERE state = 'succeeded'"],
    ),
    "an end by an attempt that never returned": (
        "zombie",
        [
            "UPDATE crash_history SET note = 'success:3', attempt = 3, old_attempt = 3 WHERE state = 'succeeded'",
            "UPDATE action_retrier_runs SET attempt = 3",
        ],
    ),
    "an end that was changed": (
        "final",
        ["UPDATE action_retrier_runs SET state = 'failed', error_type = 'E', error = 'e'"],
    ),
    "a result that was changed": ("illegal", ["UPDATE action_retrier_runs SET result = '3'"]),
    "a result that was changed, and nobody saw it": (
        "illegal",
        ["UPDATE action_retrier_runs SET result = '3'", "DELETE FROM crash_history WHERE note = 'success:3'"],
    ),
    "a due time that was changed": ("illegal", ["UPDATE action_retrier_runs SET due_at = due_at + 1"]),
    "a canceled run that went on": (
        "canceled",
        ["UPDATE crash_history SET old_state = 'canceled' WHERE state = 'succeeded'"],
    ),
    "an attempt that is recorded twice": ("executions", ["UPDATE action_retrier_runs SET failures = 2"]),
    "an attempt that is not recorded": ("executions", ["DELETE FROM action_retrier_attempts"]),
    "an attempt before it was due": (
        "early",
        ["UPDATE crash_history SET old_due_at = at + 100000 WHERE state = 'running' AND attempt = 2"],
    ),
    "an attempt that was claimed by a wrong clock": (
        "early",
        ["UPDATE crash_history SET started_at = started_at + 100000 WHERE state = 'running'"],
    ),
    "an attempt that was claimed before it was due, a little later": (
        "early",
        ["UPDATE crash_history SET started_at = old_due_at - 10000 WHERE state = 'running' AND attempt = 2"],
    ),
    "a retry that waits less than the policy says": ("early", ["UPDATE action_retrier_attempts SET delay = 4000"]),
    "a retry that waits longer than the policy says": ("early", ["UPDATE action_retrier_attempts SET delay = 16000"]),
    "a retry that is due when it should not be": (
        "early",
        ["UPDATE crash_history SET due_at = due_at + 1000000 WHERE state = 'pending'"],
    ),
    "an attempt that did not fail, and waits": (
        "early",
        ["UPDATE crash_history SET failures = 0 WHERE state = 'pending'"],
    ),
    "a deadline that nobody has set": ("illegal", ["UPDATE crash_history SET deadline_at = at + 1000000"]),
    "a removal of what goes on": ("removed", ["UPDATE crash_history SET state = 'removed' WHERE state = 'pending'"]),
    "a worker that is left": (
        "left",
        [
            "INSERT INTO action_retrier_workers (id, namespace, started_at, host, pid, actions, mutations{renewed})"
            " VALUES ('w', 'default', 0, 'h', 1, '[]', '[]'{zero})"
        ],
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_noticed(scene, run_id, name):
    rule, statements = TAMPERING[name]
    with scene.database.looking() as look:
        for statement in statements:
            lease = {"renewed": ", renewed_at", "zero": ", 0"} if scene.database.kind == "postgres" else {}
            look.write(statement.format(renewed=lease.get("renewed", ""), zero=lease.get("zero", "")))

    assert rule in broken(scene)


LIMITED = [
    "UPDATE action_retrier_runs SET options = replace(options, '\"deadline_ms\":null', '\"deadline_ms\":60000')",
    "UPDATE crash_history SET deadline_at = (SELECT min(old_due_at) FROM crash_history) + 60000000",
]
"""Statements that make of a run without a deadline one that has met its own."""
LATE = {
    "was claimed": ["UPDATE crash_history SET started_at = deadline_at, at = deadline_at WHERE attempt = 2"],
    "after the deadline": [
        "UPDATE crash_history SET old_due_at = old_due_at - 120000000, deadline_at = deadline_at - 120000000"
    ],
    "by its deadline": [
        "UPDATE crash_history SET state = 'failed', note = 'failed:DeadlineExceeded: ' WHERE state = 'succeeded'"
    ],
    "failed for good": ["UPDATE crash_history SET state = 'failed', note = 'failed:E: ' WHERE state = 'succeeded'"],
    "its deadline is": ["UPDATE crash_history SET deadline_at = NULL WHERE attempt = 2"],
}


@pytest.mark.parametrize("text", LATE)
def test_a_deadline_that_is_not_kept_is_noticed(scene, run_id, text):
    with scene.database.looking() as look:
        for statement in LIMITED:
            look.write(statement)
        assert broken(scene) == set()
        for statement in LATE[text]:
            look.write(statement)

    assert any(text in one.text for _, one in examine(scene.database, scene.folder))


REMOVED = {
    "an attempt that was not recorded": (
        "executions",
        "UPDATE crash_history SET note = replace(note, 'RuntimeError', 'Canceled') WHERE state = 'removed'",
    ),
    "more failures than allowed": ("executions", "UPDATE crash_history SET failures = 9"),
    "a backoff that was too long": (
        "early",
        "UPDATE crash_history SET due_at = due_at + 1000000 WHERE state = 'pending'",
    ),
    "a callback that was never owed": (
        "callback",
        "UPDATE crash_history SET callback = 'none', old_callback = 'none'",
    ),
}


@pytest.mark.parametrize("name", REMOVED)
def test_what_is_wrong_with_a_run_that_was_removed_is_noticed(scene, program, run_id, name):
    program.retrier.cleanup(program.app, run_id)
    assert broken(scene) == set()
    rule, statement = REMOVED[name]
    with scene.database.looking() as look:
        look.write(statement)
        look.write(
            "DELETE FROM effects WHERE EXISTS (SELECT 1 FROM crash_history WHERE callback = 'none' AND state = 'removed')"
        )

    assert rule in broken(scene)


def test_an_execution_of_a_run_that_was_removed_is_noticed(scene, program, run_id):
    program.retrier.cleanup(program.app, run_id)
    program.witness.tell("begin", run_id, 2)

    assert broken(scene) == {"executions"}


@pytest.mark.parametrize(("kind", "answer"), [("status", IN_PROGRESS), ("retry", "RunInProgress"), ("retry", "ok")])
def test_an_answer_that_was_true_an_hour_ago_is_noticed(scene, run_id, kind, answer):
    asked_at = time.monotonic_ns() // 1000 + 3_600_000_000
    with (scene.folder / "told.log").open("a") as log:
        for line in ([asked_at, "invoked", "late", kind, run_id, {}], [asked_at + 1, "answered", "late", answer]):
            log.write(json.dumps(line) + "\n")

    assert broken(scene) == {"told"}


def test_whoever_has_written_after_a_change_has_waited_for_it():
    end = {
        "at": 10_000_000, "ordered_at": 11_000_000, "old_state": "running", "state": "succeeded", "note": "success:1",
        "attempt": 1, "old_callback": "none", "callback": "none", "old_due_at": 1, "due_at": 1,
    }  # fmt: skip
    writes = Writes()

    def latest(**changed):
        (step,) = steps([{**end, **changed}], writes, 0, 1_000_000)
        return step.latest

    assert latest() == 10_000_000 + OPEN_US
    writes.add(10_500_000, 10_600_000)  # may have been before it
    writes.add(13_000_000, 13_500_000)
    writes.add(12_000_000, 14_000_000)
    assert latest() == 13_500_000 + 1_000_000 + EARLY_US
    assert latest(ordered_at=None) == 10_000_000 + OPEN_US

    later = {**end, "at": 90_000_000, "ordered_at": None, "state": "removed", "old_state": "succeeded"}
    earlier, _ = steps([{**end, "ordered_at": None}, {**later, "at": -20_000_000}], writes, 0, 0)
    assert earlier.latest == -20_000_000 + OPEN_US, "each has happened before the next"


def test_an_answer_that_is_not_true_is_noticed(scene, run_id, teller):
    teller.answer(teller.invoke("cancel", run_id), "true")

    assert broken(scene) == {"told"}


def test_a_run_that_nobody_canceled_is_noticed(scene, program, teller):
    teller.answer(teller.invoke("status", "of another run"), UNKNOWN)
    (run_id,) = program.start([call("return", on_complete=None)])
    assert program.retrier.cancel(program.app, run_id)

    assert broken(scene) == {"told"}


def test_a_run_whose_start_was_rolled_back_is_noticed(scene, run_id, teller):
    start = teller.invoke("start", "another tag", count=1)
    teller.intend(start, [run_id])
    teller.answer(start, "rolled back")

    assert broken(scene) == {"rolled back"}


def test_a_batch_that_is_there_in_part_is_noticed(scene, run_id, teller):
    teller.invoke("start", "tag", count=2)  # an answer that never came, to the same start
    line, *others = (scene.folder / "told.log").read_text().splitlines()
    first = json.loads(line)
    first[-1]["count"] = 2
    (scene.folder / "told.log").write_text("\n".join([json.dumps(first), *others, ""]))

    assert broken(scene) == {"lost"}


def test_a_key_that_gave_two_answers_is_noticed(scene, program, teller):
    (run_id,) = program.start([call("return", on_complete=None, idempotency_key="one")])
    assert program.retrier.cancel(program.app, run_id)
    cancel = teller.invoke("cancel", run_id)
    teller.answer(cancel, UNKNOWN)
    for answer in (run_id, "another"):
        teller.answer(teller.invoke("start", "", count=1, key="one"), [answer])

    assert broken(scene) == {"illegal", "lost"}


def test_an_execution_of_what_does_not_exist_is_noticed(scene, program):
    program.witness.tell("begin", "ghost", 1)

    assert broken(scene) == {"lost"}
