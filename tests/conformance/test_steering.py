"""Cancel, retry, cleanup and retention: what they change, what they refuse, and what they never touch."""

import contextlib
from typing import Any

import pytest

from action_retrier._lifecycle import Raised, Succeeded
from action_retrier._ops.control import (
    Filter,
    cancel_run,
    cancel_runs,
    clean_up_run,
    prune_runs,
    retry_run,
    retry_runs,
)
from action_retrier._ops.reports import CallbackMark, expire_runs, finish_callback
from action_retrier.errors import RunInProgress, RunNotFound, RunSucceeded
from action_retrier.results import Canceled, Completed, Failed, InProgress, Success

from ..stores import NAMESPACE, Store

DAY_US = 86_400_000_000
UNKNOWN = "01890000-0000-7000-8000-000000000000"
STATES = ["scheduled", "due", "backing off", "suspect", "running", "succeeded", "failed", "canceled"]
COMPLETED = {"succeeded", "failed", "canceled"}


def run_that_is(store: Store, state: str, *, on_complete: str = "", callback: str = "done", **options: Any) -> str:
    """Return a run in a state; if it has a callback and has completed, with that in the state *callback*."""
    worker = store.worker(mutations=("done",))
    delay = 60_000 if state == "scheduled" else 0
    limit = 0 if state == "failed" else 3
    run_id = store.start(on_complete=on_complete, delay_ms=delay, max_failures=limit, **options)
    mark = CallbackMark(callback, tries=1) if on_complete else CallbackMark()
    match state:
        case "backing off":
            store.report(store.claim_one(worker), worker, Raised("E", "e"))
        case "suspect":
            store.claim_one(worker)
            store.lose(worker)
        case "running":
            store.claim_one(worker)
        case "succeeded":
            store.report(store.claim_one(worker), worker, Succeeded('"it"'), mark)
        case "failed":
            store.report(store.claim_one(worker), worker, Raised("E", "e"), mark)
        case "canceled":
            store.write(cancel_run, NAMESPACE, run_id)
            if on_complete and callback == "done":
                caller = store.worker(mutations=("done",))
                (row,) = store.claim_callbacks(caller)
                store.write(finish_callback, run_id, caller.id, row["callback_tries"])
    return run_id


# Cancel.


@pytest.mark.parametrize("on_complete", ["", "done"])
@pytest.mark.parametrize("state", STATES)
def test_cancel_tells_the_truth(store: Store, state: str, on_complete: str) -> None:
    """I3, I5: True: this call canceled it. False: it had completed before, and is unchanged."""
    run_id = run_that_is(store, state, on_complete=on_complete)
    before = store.row(run_id)

    answer = store.write(cancel_run, NAMESPACE, run_id)

    assert answer is (state not in COMPLETED)
    if answer:
        row = store.row(run_id)
        assert store.status(run_id) == Completed(Canceled())
        assert (row["completed_at"], row["result"]) == (store.clock.now_us(), None)
        assert row["callback_state"] == ("pending" if on_complete else "none")
    else:
        assert store.row(run_id) == before


def test_only_the_first_of_two_cancels_says_true(store: Store) -> None:
    run_id = store.start()

    assert [store.write(cancel_run, NAMESPACE, run_id) for _ in range(2)] == [True, False]


def test_canceling_what_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(RunNotFound) as caught:
        store.write(cancel_run, NAMESPACE, UNKNOWN)
    assert caught.value.run_id == UNKNOWN


def test_a_canceled_attempt_is_on_record(store: Store) -> None:
    """History says which attempt was under way, and who executed it."""
    run_id = store.start()
    worker = store.worker()
    store.claim_one(worker)
    store.clock.advance(5)

    store.write(cancel_run, NAMESPACE, run_id)

    (attempt,) = store.get(run_id).attempts
    assert (attempt.number, attempt.worker, attempt.error_type, attempt.delay_ms) == (1, worker.id, "Canceled", None)
    assert attempt.ended_at is not None
    assert (attempt.ended_at - attempt.started_at).total_seconds() == 0.005


@pytest.mark.parametrize("state", ["scheduled", "due", "backing off", "suspect"])
def test_canceling_what_does_not_execute_adds_no_attempt(store: Store, state: str) -> None:
    """An attempt that never was must not be on record."""
    run_id = run_that_is(store, state)
    before = store.attempts(run_id)

    store.write(cancel_run, NAMESPACE, run_id)

    assert store.attempts(run_id) == before


@pytest.mark.parametrize("state", ["scheduled", "due", "backing off", "suspect"])
def test_a_canceled_run_is_claimed_by_nobody(store: Store, state: str) -> None:
    """I5: canceled stays canceled, whatever becomes due later."""
    run_id = run_that_is(store, state)
    store.write(cancel_run, NAMESPACE, run_id)
    store.clock.advance(10**9)

    worker = store.worker()
    assert store.claim_ids(worker) == []
    assert store.next_due(worker).work_us is None
    assert store.write(expire_runs, NAMESPACE, 10) == 0
    assert store.status(run_id) == Completed(Canceled())


def test_a_cancel_that_is_rolled_back_has_not_happened(store: Store) -> None:
    """I6: its True holds from the commit on."""
    run_id = store.start()
    with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
        assert transaction.run(cancel_run, NAMESPACE, run_id)
        raise ZeroDivisionError

    assert store.status(run_id) == InProgress()
    assert store.claim_ids(store.worker()) == [run_id]


def test_canceling_in_bulk_cancels_what_the_filter_names(store: Store) -> None:
    """Every run in progress that the filter leaves, and none that has completed."""
    done = run_that_is(store, "succeeded", queue="c")
    ids = {(action, queue): store.start(action, queue=queue) for action in ("charge", "refund") for queue in ("a", "b")}
    assert store.write(cancel_runs, "elsewhere", Filter()) == 0
    assert store.write(cancel_runs, NAMESPACE, Filter(["charge"], "a")) == 1
    assert store.write(cancel_runs, NAMESPACE, Filter(queue="a")) == 1
    assert store.status(ids["charge", "b"]) == InProgress()

    assert store.write(cancel_runs, NAMESPACE, Filter()) == 2

    assert {store.status(run_id) for run_id in ids.values()} == {Completed(Canceled())}
    assert store.status(done) == Completed(Success("it"))


def test_canceling_in_bulk_records_the_attempts_under_way(store: Store) -> None:
    running = [run_that_is(store, "running") for _ in range(3)]
    store.start()

    assert store.write(cancel_runs, NAMESPACE, Filter()) == 4

    assert {row["run_id"] for row in store.system.table("attempts")} == set(running)


# Retry.


@pytest.mark.parametrize("on_complete", ["", "done"])
@pytest.mark.parametrize("state", ["failed", "canceled"])
def test_retry_starts_afresh_under_the_same_id(store: Store, state: str, on_complete: str) -> None:
    """I2, I3, I8: a new count of failures, but attempt numbers are never reused; and it completes again."""
    run_id = run_that_is(store, state, on_complete=on_complete, args='{"a": 1}', context="7")
    attempts = store.row(run_id)["attempt"]
    history = store.attempts(run_id)
    store.clock.advance(1000)

    store.write(retry_run, NAMESPACE, run_id)

    assert store.status(run_id) == InProgress()
    run = store.get(run_id)
    assert (run.failures, run.started_at, run.completed_at, run.result) == (0, None, None, None)
    assert (run.args, run.context, run.due_at) == ({"a": 1}, 7, store.clock.now())
    assert store.attempts(run_id) == history
    worker = store.worker(mutations=("done",))
    row = store.claim_one(worker)
    assert (row["attempt"], row["failures"]) == (attempts + 1, 0)
    assert store.report(row, worker, Succeeded("1"))
    assert store.status(run_id) == Completed(Success(1))
    assert store.row(run_id)["callback_state"] == ("pending" if on_complete else "none")
    assert store.row(run_id)["callback_tries"] == 0


def test_a_retried_run_has_all_its_executions_again(store: Store) -> None:
    """I8: max_failures + 1 executions per start."""
    run_id = store.start(max_failures=1, initial_backoff_ms=0)
    worker = store.worker()
    for start in (1, 2, 3):
        for number in (1, 2):
            row = store.claim_one(worker)
            assert row["attempt"] == 2 * (start - 1) + number
            store.report(row, worker, Raised("E", f"{start}.{number}"))
        assert store.status(run_id) == Completed(Failed(f"{start}.2", "E"))
        store.write(retry_run, NAMESPACE, run_id)

    assert [one["number"] for one in store.attempts(run_id)] == [1, 2, 3, 4, 5, 6]


def test_retry_gives_no_deadline_to_a_run_that_has_none(store: Store) -> None:
    run_id = store.start()
    store.write(cancel_run, NAMESPACE, run_id)

    store.write(retry_run, NAMESPACE, run_id)

    assert store.row(run_id)["deadline_at"] is None


@pytest.mark.parametrize("deadline_ms", [1500, 1500.5, 1e300], ids=str)
def test_retry_starts_the_deadline_anew(store: Store, deadline_ms: float) -> None:
    """The deadline counts from the new due time, just as from the first one."""
    run_id = run_that_is(store, "failed", deadline_ms=deadline_ms)
    first = store.row(run_id)
    store.clock.advance(10_000)

    store.write(retry_run, NAMESPACE, run_id)

    row = store.row(run_id)
    assert row["deadline_at"] - row["due_at"] == first["deadline_at"] - first["due_at"]
    assert isinstance(row["deadline_at"], int)


def test_a_run_that_backs_off_is_made_due_now(store: Store) -> None:
    """Its count of failures, its history and its last error stay as they are."""
    run_id = run_that_is(store, "backing off")
    before = store.row(run_id)
    assert before["due_at"] > store.clock.now_us()

    store.write(retry_run, NAMESPACE, run_id)

    assert store.row(run_id) == before | {"due_at": store.clock.now_us()}
    assert store.claim_ids(store.worker()) == [run_id]


def test_a_suspect_that_is_made_due_now_is_still_a_suspect(store: Store) -> None:
    run_id = run_that_is(store, "suspect")

    store.write(retry_run, NAMESPACE, run_id)

    assert [row["id"] for row in store.claim(store.worker()).suspects] == [run_id]


@pytest.mark.parametrize("state", ["scheduled", "due"])
def test_a_run_that_is_on_its_way_is_left_alone(store: Store, state: str) -> None:
    """I7: a run that was started for later is not hurried by a retry."""
    run_id = run_that_is(store, state)
    before = store.snapshot()

    store.write(retry_run, NAMESPACE, run_id)

    assert store.snapshot() == before


@pytest.mark.parametrize(
    ("state", "callback", "error"),
    [
        ("running", "", RunInProgress),
        ("succeeded", "", RunSucceeded),
        ("succeeded", "done", RunSucceeded),
        ("succeeded", "pending", RunInProgress),
        ("failed", "pending", RunInProgress),
        ("canceled", "pending", RunInProgress),
    ],
)
def test_what_may_not_be_retried_is_unchanged(store: Store, state: str, callback: str, error: type[Exception]) -> None:
    """I3, I4: a success is final, and a pending callback keeps retry off."""
    run_id = run_that_is(store, state, on_complete="done" if callback else "", callback=callback)
    before = store.snapshot()

    with pytest.raises(error, match=run_id):
        store.write(retry_run, NAMESPACE, run_id)

    assert store.snapshot() == before


@pytest.mark.parametrize("op", ["retry", "cleanup"])
def test_a_refusal_says_that_the_callback_is_pending(store: Store, op: str) -> None:
    run_id = run_that_is(store, "failed", on_complete="done", callback="pending")

    with pytest.raises(RunInProgress, match="callback 'done' is still pending"):
        _try(store, op, run_id)


@pytest.mark.parametrize("op", ["retry", "cleanup"])
def test_what_is_not_there_is_not_found(store: Store, op: str) -> None:
    with pytest.raises(RunNotFound):
        _try(store, op, UNKNOWN)


def _try(store: Store, op: str, run_id: str) -> None:
    if op == "retry":
        store.write(retry_run, NAMESPACE, run_id)
    else:
        store.write(clean_up_run, NAMESPACE, run_id, discard_callback=False)


def test_retrying_in_bulk_starts_what_failed_and_was_canceled(store: Store) -> None:
    """Those whose callback is pending, those in progress and those that succeeded are left."""
    retried = [run_that_is(store, "failed", queue="a"), run_that_is(store, "canceled", queue="b")]
    left = {
        run_that_is(store, "failed", on_complete="done", callback="pending", queue="a"),
        run_that_is(store, "succeeded", queue="a"),
        run_that_is(store, "backing off", queue="a"),
    }
    before = {run_id: store.row(run_id) for run_id in left}
    assert store.write(retry_runs, "elsewhere", Filter()) == 0
    assert store.write(retry_runs, NAMESPACE, Filter(["refund"])) == 0
    assert store.write(retry_runs, NAMESPACE, Filter(queue="b")) == 1

    assert store.write(retry_runs, NAMESPACE, Filter()) == 1

    assert {store.status(run_id) for run_id in retried} == {InProgress()}
    assert {run_id: store.row(run_id) for run_id in left} == before


# Cleanup.


@pytest.mark.parametrize("on_complete", ["", "done"])
@pytest.mark.parametrize("state", STATES)
def test_cleanup_removes_a_completed_run_and_its_history(store: Store, state: str, on_complete: str) -> None:
    """I1, I9: nothing else is ever removed."""
    other = run_that_is(store, "backing off")
    run_id = run_that_is(store, state, on_complete=on_complete)
    before = store.snapshot()

    if state in COMPLETED:
        assert store.write(clean_up_run, NAMESPACE, run_id, discard_callback=False) is False
        with pytest.raises(RunNotFound):
            store.status(run_id)
        assert {row["run_id"] for row in store.system.table("attempts")} == {other}
    else:
        for discard in (False, True):
            with pytest.raises(RunInProgress, match="has not completed"):
                store.write(clean_up_run, NAMESPACE, run_id, discard_callback=discard)
        assert store.snapshot() == before


@pytest.mark.parametrize("state", sorted(COMPLETED))
def test_a_pending_callback_keeps_cleanup_off_unless_it_is_discarded(store: Store, state: str) -> None:
    """I4: giving a callback up is an operator's deliberate act, and is told apart from a plain cleanup."""
    run_id = run_that_is(store, state, on_complete="done", callback="pending")
    with pytest.raises(RunInProgress):
        store.write(clean_up_run, NAMESPACE, run_id, discard_callback=False)

    assert store.write(clean_up_run, NAMESPACE, run_id, discard_callback=True) is True

    with pytest.raises(RunNotFound):
        store.status(run_id)


def test_another_namespace_cleans_nothing_up(store: Store) -> None:
    run_id = run_that_is(store, "succeeded")

    with pytest.raises(RunNotFound):
        store.write(clean_up_run, "elsewhere", run_id, discard_callback=True)

    assert store.status(run_id) == Completed(Success("it"))


# Retention.


@pytest.mark.parametrize("callback", ["", "done", "pending"])
@pytest.mark.parametrize("state", STATES)
def test_retention_touches_only_what_is_over(store: Store, state: str, callback: str) -> None:
    """I9: only completed runs with no pending callback, however old."""
    run_id = run_that_is(store, state, on_complete="done" if callback else "", callback=callback or "done")
    store.clock.advance(400 * DAY_US / 1000)

    removed = store.write(prune_runs, NAMESPACE, 7 * DAY_US, 100)

    expected = state in COMPLETED and callback != "pending"
    assert removed == int(expected)
    assert (run_id in {row["id"] for row in store.system.table("runs")}) is not expected
    if expected:
        assert store.system.table("attempts") == []


def test_retention_counts_from_the_completion(store: Store) -> None:
    """I9: older than the limit since it completed, not since it was started."""
    run_id = store.start()
    store.clock.advance(100)
    store.write(cancel_run, NAMESPACE, run_id)
    store.clock.advance(50)

    assert store.write(prune_runs, NAMESPACE, 50_000, 100) == 0
    store.clock.advance(0.001)
    assert store.write(prune_runs, NAMESPACE, 50_000, 100) == 1


def test_retention_goes_in_batches_the_oldest_first(store: Store) -> None:
    runs = []
    for _ in range(5):
        runs.append(run_that_is(store, "failed"))
        store.clock.advance(1)
    store.clock.advance(10)

    assert store.write(prune_runs, NAMESPACE, 1000, 2) == 2
    assert {row["id"] for row in store.system.table("runs")} == set(runs[2:])
    assert [store.write(prune_runs, NAMESPACE, 1000, 2) for _ in range(3)] == [2, 1, 0]


def test_old_callbacks_that_are_pending_do_not_hold_up_the_rest(store: Store) -> None:
    """I9: a batch is filled with what can be removed, however many older ones cannot."""
    for _ in range(3):
        run_that_is(store, "failed", on_complete="done", callback="pending")
        store.clock.advance(1)
    removable = [run_that_is(store, "succeeded") for _ in range(2)]
    store.clock.advance(1000)

    assert store.write(prune_runs, NAMESPACE, 1_000_000, 2) == 0
    store.clock.advance(1)
    assert store.write(prune_runs, NAMESPACE, 1_000_000, 2) == 2
    assert not set(removable) & {row["id"] for row in store.system.table("runs")}


def test_retention_is_the_namespaces_own(store: Store) -> None:
    run_that_is(store, "succeeded")
    store.clock.advance(1000)

    assert store.write(prune_runs, "elsewhere", 1000, 100) == 0
