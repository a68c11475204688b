"""The oracle of the crash tests can fail: evidence that somebody has tampered with is refused."""

import json

import pytest
from crash_oracle import examine
from crash_program import call
from crash_told import Teller
from linearizability import UNKNOWN

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
