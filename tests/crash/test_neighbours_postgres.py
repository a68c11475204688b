"""What one user's code does to the database delays or spoils nothing of anybody else's."""

import contextlib
import threading
import time

import pytest
from crash_processes import eventually
from crash_program import call

from action_retrier import MutationCtx

pytestmark = pytest.mark.crash

OTHERS = 20
AT_ONCE_S = 3.0
BAD = ("raises", "breaks a constraint", "commits")


@pytest.fixture
def held(scene, program):
    """A user's own connection, whose transaction stays open."""
    with contextlib.closing(scene.database.connect()) as connection:
        yield connection


def take_their_course(scene, run_ids):
    begun_at = time.monotonic()
    scene.wait_until_complete(run_ids)
    assert time.monotonic() - begun_at < AT_ONCE_S


@pytest.mark.parametrize("callback", [None, "record", "record_shared"])
def test_an_uncommitted_cancel_of_a_waiting_run_delays_nobody(scene, program, held, callback):
    (run_id,) = program.start([call("return", on_complete=callback)])
    assert program.retrier.cancel(held, run_id)

    with program.app.worker():
        others = program.start([call("return", on_complete=callback) for _ in range(OTHERS)])
        take_their_course(scene, others)
        assert scene.row(run_id)["state"] == "pending"
        held.commit()
        scene.wait_until_complete([run_id])
    assert scene.row(run_id)["state"] == "canceled"


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("callback", [None, "record", "record_shared"])
def test_an_uncommitted_cancel_of_a_run_that_executes_delays_nobody(scene, program, held, callback, ends):
    """Its report waits for the user's transaction; those of its neighbours do not."""
    with program.app.worker():
        (run_id,) = program.start([call("deaf", on_complete=callback)])
        eventually(lambda: scene.lines("begin", run_id))
        assert program.retrier.cancel(held, run_id)
        scene.release()
        eventually(lambda: scene.lines("end", run_id))
        others = program.start([call("raise", "return", on_complete=callback) for _ in range(OTHERS)])
        take_their_course(scene, others)
        assert scene.row(run_id)["state"] == "running"
        getattr(held, ends)()
        scene.wait_until_complete([run_id])
    assert scene.row(run_id)["state"] == ("canceled" if ends == "commit" else "succeeded")


def test_uncommitted_cancels_of_all_that_executes_delay_nobody(scene, program, held):
    """What has ended, and cannot be written, takes nobody's slot."""
    with program.app.worker(concurrency=10):
        run_ids = program.start([call("deaf") for _ in range(10)])
        eventually(lambda: len(scene.lines("begin")) == 10)
        for run_id in run_ids:
            assert program.retrier.cancel(held, run_id)
        scene.release()
        eventually(lambda: len(scene.lines("end")) == 10)
        take_their_course(scene, program.start([call("return") for _ in range(OTHERS)]))
        held.commit()
        scene.wait_until_complete(run_ids)
    assert {scene.row(run_id)["state"] for run_id in run_ids} == {"canceled"}


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_an_uncommitted_idempotency_key_delays_only_who_uses_the_same(scene, program, held, ends):
    (mine,) = program.retrier.run_many(held, [call("return", idempotency_key="one")])
    theirs = []
    waiting = threading.Thread(target=lambda: theirs.extend(program.start([call("return", idempotency_key="one")])))
    waiting.start()

    with program.app.worker():
        begun_at = time.monotonic()
        others = [program.start([call("return", idempotency_key=f"other {number}")])[0] for number in range(OTHERS)]
        others += [program.start([call("return")])[0] for _ in range(OTHERS)]
        assert time.monotonic() - begun_at < AT_ONCE_S
        take_their_course(scene, others)
        assert theirs == []
        getattr(held, ends)()
        waiting.join()
        scene.wait_until_complete(theirs)
    assert (theirs == [mine]) == (ends == "commit")


def register(program):
    """Register a callback that does what its context says, and shares its transaction with others."""

    @program.app.mutation(name="behave", isolation="read committed")
    def behave(ctx: MutationCtx, run_id: str, context: str) -> None:
        ctx.db.execute("INSERT INTO effects (run_id, outcome) VALUES (%s, 'success')", (run_id,))
        match context:
            case "raises":
                raise RuntimeError("told to raise")
            case "breaks a constraint":  # which is looked at when the transaction commits
                ctx.db.execute("INSERT INTO children (parent) VALUES (4711)")
            case "commits":
                ctx.db.execute("COMMIT")
            case "deadlocks":
                ctx.db.execute("UPDATE locks SET count = count + 1 WHERE id = 1")
                ctx.db.execute("UPDATE locks SET count = count + 1 WHERE id = 2")


def test_a_batch_with_callbacks_that_fail_in_every_way_spoils_no_neighbour(scene, program):
    """One raises, one breaks a deferred constraint at COMMIT, one deadlocks, one smuggles in a COMMIT."""
    register(program)
    with scene.database.connect() as own:
        own.execute("CREATE TABLE parents (id integer PRIMARY KEY)")
        own.execute("CREATE TABLE children (parent integer REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
        own.execute("CREATE TABLE locks (id integer PRIMARY KEY, count integer)")
        own.execute("INSERT INTO locks VALUES (1, 0), (2, 0)")
    own.close()
    kinds = ["good", "raises", "good", "breaks a constraint", "good", "deadlocks", "good", "commits", "good"]
    calls = [call("deaf", on_complete="behave", context=kind) for kind in kinds]

    with contextlib.closing(scene.database.connect()) as other, program.app.worker():
        run_ids = program.start(calls)
        eventually(lambda: len(scene.lines("begin")) == len(kinds))
        other.execute("SET deadlock_timeout = '60s'")  # it is not this one that is sacrificed
        other.execute("UPDATE locks SET count = count + 1 WHERE id = 2")
        scene.release()
        eventually(lambda: scene.count("SELECT count(*) FROM pg_locks WHERE NOT granted"), what="somebody waits")
        other.execute("UPDATE locks SET count = count + 1 WHERE id = 1")
        other.commit()
        of = dict(zip(run_ids, kinds, strict=True))
        fine = [run_id for run_id, kind in of.items() if kind not in BAD]
        scene.wait_until_complete(fine)
        eventually(lambda: all(scene.row(run_id)["state"] == "succeeded" for run_id in run_ids))
        pending = {of[run.id]: run for run in program.retrier.list(program.app, callback="pending").runs}
    stories = scene.check_halfway()

    assert scene.count("SELECT sum(count) FROM locks") == 4, (
        "the other one's, and the deadlocked callback's when it was repeated"
    )
    assert [stories[run_id].effects for run_id in fine] == [["success"]] * len(fine)
    assert [stories[run_id].effects for run_id, kind in of.items() if kind in BAD] == [[]] * len(BAD)
    assert sorted(pending) == sorted(BAD)
    assert {kind: run.state for kind, run in pending.items()} == dict.fromkeys(BAD, "succeeded")
    assert "told to raise" in pending["raises"].callback.last_error
    assert "ForeignKeyViolation" in pending["breaks a constraint"].callback.last_error
    assert "COMMIT" in pending["commits"].callback.last_error.upper()
    assert {story.executions for story in stories.values()} == {1}
