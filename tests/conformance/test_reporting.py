"""Reports: every write about an attempt happens under its fence, and a run completes once."""

from typing import Any

import pytest

from action_retrier._lifecycle import (
    DeadlinePassed,
    Failure,
    Finish,
    NotBegun,
    Outcome,
    Raised,
    Reschedule,
    State,
    Succeeded,
    TimedOut,
    WorkerLost,
    WorkerStopped,
)
from action_retrier._ops.claims import Claimant
from action_retrier._ops.control import cancel_run, clean_up_run, retry_run
from action_retrier._ops.reports import (
    CallbackMark,
    Settled,
    apply_moves,
    expire_runs,
    finish_callback,
    lost_attempts,
    store_progress,
)
from action_retrier.results import Canceled, Completed, Failed, InProgress, Success

from ..stores import NAMESPACE, Store

OUTCOMES = {
    "success": Succeeded('{"charged": 7}'),
    "failure": Raised("ValueError", "no", "Traceback ..."),
    "failure for good": Raised("ValueError", "no", retryable=False),
    "failure that sets the delay": Raised("ValueError", "wait", retry_after_ms=5000),
    "time-out": TimedOut(100),
    "deadline": DeadlinePassed(100),
    "worker lost": WorkerLost("somebody"),
    "worker stopped": WorkerStopped(),
    "not begun": NotBegun(),
}


def superseded(store: Store, how: str) -> tuple[str, Claimant, Any]:
    """Return a run, and the worker and the row of an attempt that owns it no more."""
    run_id = store.start(max_failures=9, initial_backoff_ms=1000, on_complete="done")
    zombie = store.worker(mutations=("done",))
    row = store.claim_one(zombie)
    match how:
        case "lost, and backing off":
            store.lose(zombie)
        case "lost, and executed by an heir":
            store.lose(zombie)
            store.clock.advance(1000)
            store.claim_one(store.worker(mutations=("done",)))
        case "lost, and succeeded since":
            store.lose(zombie)
            store.clock.advance(1000)
            heir = store.worker(mutations=("done",))
            assert store.report(store.claim_one(heir), heir, Succeeded('"heir"'), CallbackMark("done", tries=1))
        case "lost, and claimed again by the same worker":
            assert store.report(row, zombie, Raised("E", "e"))
            store.clock.advance(1000)
            assert store.claim_one(zombie)["attempt"] == 2
        case "canceled":
            store.write(cancel_run, NAMESPACE, run_id)
        case "cleaned up":
            store.write(cancel_run, NAMESPACE, run_id)
            store.write(clean_up_run, NAMESPACE, run_id, discard_callback=True)
        case "canceled and retried":
            _cancel_and_retry(store, run_id)
        case "canceled, retried and executed by an heir":
            _cancel_and_retry(store, run_id)
            assert store.claim_one(store.worker(mutations=("done",)))["attempt"] == 2
    return run_id, zombie, row


def _cancel_and_retry(store: Store, run_id: str) -> None:
    store.write(cancel_run, NAMESPACE, run_id)
    worker = store.worker(mutations=("done",))
    (callback,) = store.claim_callbacks(worker)
    assert store.write(finish_callback, run_id, worker.id, callback["callback_tries"])
    store.write(retry_run, NAMESPACE, run_id)


WAYS = [
    "lost, and backing off",
    "lost, and executed by an heir",
    "lost, and succeeded since",
    "lost, and claimed again by the same worker",
    "canceled",
    "cleaned up",
    "canceled and retried",
    "canceled, retried and executed by an heir",
]


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
@pytest.mark.parametrize("how", WAYS)
def test_a_late_report_changes_nothing(store: Store, how: str, outcome: Outcome) -> None:
    """I2, I3, I5: what a superseded attempt reports is ignored, however it ended and whatever came since."""
    _, zombie, row = superseded(store, how)
    before = store.snapshot()

    assert not store.report(row, zombie, outcome)

    assert store.snapshot() == before


@pytest.mark.parametrize("how", WAYS)
def test_a_superseded_attempt_stores_no_progress(store: Store, how: str) -> None:
    """I2: the fence holds for progress as well."""
    run_id, _, row = superseded(store, how)
    before = store.snapshot()

    store.write(store_progress, [(run_id, row["attempt"], (0.5, "half"))])

    assert store.snapshot() == before


@pytest.mark.parametrize("how", WAYS)
def test_a_worker_learns_that_an_attempt_is_lost(store: Store, how: str) -> None:
    """The heartbeat's question names every attempt that does not own its run, and why."""
    run_id, _, row = superseded(store, how)
    live_id = store.start()
    live = store.claim_one(store.worker())
    states = [stored["state"] for stored in store.system.table("runs") if stored["id"] == run_id]

    lost = store.read(lost_attempts, [(run_id, row["attempt"]), (live_id, live["attempt"])])

    assert lost == [(run_id, row["attempt"], states[0] if states else None)]


def test_reports_of_one_batch_are_judged_one_by_one(store: Store) -> None:
    """I2: a superseded report in a batch neither stops nor smuggles anything."""
    run_id, zombie, stale = superseded(store, "lost, and executed by an heir")
    heir_row = stale | {"attempt": 2, "failures": 1, "losses": 1}
    good_id = store.start("charge")
    good = store.claim_one(store.worker())
    moves = [
        store.settled(stale, zombie, Succeeded('"stale"'), CallbackMark("done", tries=1)),
        store.settled(good, zombie, Succeeded('"good"')),
        store.settled(heir_row, zombie, Raised("E", "heir")),
    ]

    assert store.write(apply_moves, moves).owned == {(good_id, 1), (run_id, 2)}

    assert store.status(good_id) == Completed(Success("good"))
    assert store.status(run_id) == InProgress()
    assert [(row["number"], row["error_type"]) for row in store.attempts(run_id)] == [(1, "WorkerLost"), (2, "E")]


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("stale_first", [True, False])
def test_a_report_does_not_pass_under_the_fence_of_its_heirs(store: Store, *, stale_first: bool, ends: bool) -> None:
    """I2: a report whose answer was lost is written again, maybe in one batch with that of the next attempt."""
    run_id = store.start(max_failures=5, initial_backoff_ms=0)
    worker = store.worker()
    first = store.claim_one(worker)
    assert store.report(first, worker, Raised("First", "1"))
    second = store.claim_one(worker)

    stale = (
        Finish(State.FAILED, 1, failure=Failure("Stale", "1")) if ends else Reschedule(1, 1, 0, Failure("Stale", "1"))
    )
    heir = Finish(State.FAILED, 2, failure=Failure("Heir", "2")) if ends else Reschedule(2, 2, 0, Failure("Heir", "2"))
    moves = [
        Settled(run_id, first["attempt"], worker.id, stale),
        Settled(run_id, second["attempt"], worker.id, heir),
    ]
    applied = store.write(apply_moves, moves if stale_first else moves[::-1])

    assert applied.owned == {(run_id, 2)}
    row = store.row(run_id)
    assert (row["failures"], row["error_type"]) == (2, "Heir")
    assert [(one["number"], one["error_type"]) for one in store.attempts(run_id)] == [(1, "First"), (2, "Heir")]


def test_a_report_finishes_the_run(store: Store) -> None:
    """I3: the outcome, and the attempt that led to it."""
    run_id = store.start()
    worker = store.worker()
    row = store.claim_one(worker)
    store.clock.advance(20)

    assert store.report(row, worker, Succeeded('{"charged": 7}'))

    assert store.status(run_id) == Completed(Success({"charged": 7}))
    run = store.get(run_id)
    assert (run.state, run.failures, run.completed_at) == ("succeeded", 0, store.clock.now())
    (attempt,) = run.attempts
    assert (attempt.number, attempt.worker, attempt.error_type, attempt.delay_ms) == (1, worker.id, None, None)
    assert attempt.ended_at is not None
    assert (attempt.ended_at - attempt.started_at).total_seconds() == 0.02


def test_reporting_twice_is_reporting_once(store: Store) -> None:
    """I3: a report that is repeated because its commit's result was unknown finds nothing to do."""
    run_id = store.start()
    worker = store.worker()
    row = store.claim_one(worker)
    assert store.report(row, worker, Succeeded("1"))
    before = store.snapshot()

    assert not store.report(row, worker, Succeeded("2"))
    assert not store.report(row, worker, Raised("E", "e"))

    assert store.snapshot() == before
    assert store.status(run_id) == Completed(Success(1))


def test_failures_are_retried_until_none_is_left(store: Store) -> None:
    """I8: max_failures retries are max_failures + 1 executions, and the last error is the run's."""
    run_id = store.start(max_failures=2, initial_backoff_ms=10, base=1)
    worker = store.worker()
    for number in (1, 2, 3):
        row = store.claim_one(worker)
        assert row["attempt"] == number
        assert store.status(run_id) == InProgress()
        store.report(row, worker, Raised("ValueError", f"error {number}", f"traceback {number}"))
        store.clock.advance(10)

    assert store.claim_ids(worker) == []
    assert store.status(run_id) == Completed(Failed("error 3", "ValueError"))
    run = store.get(run_id)
    assert run.failures == 3
    told = [(one.number, one.error_type, one.error, one.traceback, one.delay_ms) for one in run.attempts]
    assert told == [
        (1, "ValueError", "error 1", "traceback 1", 10),
        (2, "ValueError", "error 2", "traceback 2", 10),
        (3, "ValueError", "error 3", "traceback 3", None),
    ]


@pytest.mark.parametrize(
    ("outcome", "error_type", "error"),
    [
        (Raised("app.Broken", "no way", retryable=False), "app.Broken", "no way"),
        (DeadlinePassed(1500), "DeadlineExceeded", "deadline_ms=1500 passed while the attempt was running"),
    ],
)
def test_some_outcomes_end_the_run_at_once(store: Store, outcome: Outcome, error_type: str, error: str) -> None:
    run_id = store.start(max_failures=9)
    worker = store.worker()

    store.report(store.claim_one(worker), worker, outcome)

    assert store.status(run_id) == Completed(Failed(error, error_type))


def test_a_retry_that_would_miss_the_deadline_ends_the_run_now(store: Store) -> None:
    """What would be said at the deadline is said at once, with the last error."""
    run_id = store.start(deadline_ms=1000, initial_backoff_ms=1000)
    worker = store.worker()

    store.report(store.claim_one(worker), worker, Raised("E", "the last one"))

    assert store.status(run_id) == Completed(Failed("the last one", "E"))


def test_an_action_may_set_the_next_delay_itself(store: Store) -> None:
    run_id = store.start(max_backoff_ms=10)
    worker = store.worker()

    store.report(store.claim_one(worker), worker, Raised("E", "e", retry_after_ms=60_000))

    delay_us = store.row(run_id)["due_at"] - store.clock.now_us()
    assert 60_000_000 <= delay_us <= 66_000_000
    assert store.get(run_id).attempts[0].delay_ms == delay_us / 1000


@pytest.mark.parametrize("text", ["", "naïve 🎉 'quoted' \\ $.id ␀", "x" * 16_000])
def test_errors_and_results_come_back_as_they_were(store: Store, text: str) -> None:
    """Error texts pass through JSON on their way to the row, and nothing happens to them there."""
    run_id = store.start(max_failures=0)
    worker = store.worker()

    store.report(store.claim_one(worker), worker, Raised("E", text, text))

    assert store.status(run_id) == Completed(Failed(text, "E"))
    assert store.get(run_id).attempts[0].traceback == text


@pytest.mark.parametrize(
    "text", ["null", "0", '""', "[]", "{}", "1.5", '"\\u00e9 \\" \\\\"', "123456789012345678901234"]
)
def test_any_json_is_a_result(store: Store, text: str) -> None:
    """The result is stored as the text it is: null is a result, and a large number stays exact."""
    run_id = store.start()
    worker = store.worker()

    store.report(store.claim_one(worker), worker, Succeeded(text))

    assert store.row(run_id)["result"] == text


# Progress.


def test_progress_is_stored_and_the_next_attempt_starts_from_none(store: Store) -> None:
    run_id = store.start(initial_backoff_ms=0)
    worker = store.worker()
    row = store.claim_one(worker)
    store.write(store_progress, [(run_id, 1, (0.25, "a quarter"))])
    progress = store.get(run_id).progress
    assert progress is not None
    assert (progress.fraction, progress.message) == (0.25, "a quarter")

    store.report(row, worker, Raised("E", "e"))
    assert store.get(run_id).progress == progress
    store.claim_one(worker)

    assert store.get(run_id).progress is None


@pytest.mark.parametrize("outcome", [Succeeded("1"), Raised("E", "e")])
def test_the_last_progress_is_written_with_the_report(store: Store, outcome: Outcome) -> None:
    """What an attempt said right before its end is not lost to the once-a-second rule."""
    run_id = store.start()
    worker = store.worker()
    settled = store.settled(store.claim_one(worker), worker, outcome)

    store.write(apply_moves, [Settled(run_id, 1, worker.id, settled.move, settled.callback, (1.0, "all"))])

    assert (store.row(run_id)["progress"], store.row(run_id)["progress_message"]) == (1.0, "all")


# Deadlines.


def test_a_pending_run_past_its_deadline_fails_with_its_last_error(store: Store) -> None:
    """The run fails with what its last attempt said, and owes its callback."""
    backed_off = store.start(initial_backoff_ms=100, deadline_ms=200, on_complete="done")
    never_began = store.start("nobody knows it", deadline_ms=200)
    later = store.start("nobody knows it", deadline_ms=200.001)
    worker = store.worker(mutations=("done",))
    rows = store.claim(worker).runs
    for row in rows:
        store.report(row, worker, Raised("E", "the last one"))
    store.clock.advance(200)

    assert store.write(expire_runs, NAMESPACE, 100) == 2

    assert store.status(backed_off) == Completed(Failed("the last one", "E"))
    assert store.row(backed_off)["callback_state"] == "pending"
    assert store.status(never_began) == Completed(
        Failed("the deadline passed before an attempt began", "DeadlineExceeded")
    )
    assert store.status(later) == InProgress()
    assert store.write(expire_runs, NAMESPACE, 100) == 0


def test_runs_expire_in_batches_the_oldest_first(store: Store) -> None:
    runs = [store.start(deadline_ms=10 - number) for number in range(5)]
    store.clock.advance(10)

    assert [store.write(expire_runs, NAMESPACE, 2) for _ in range(3)] == [2, 2, 1]
    assert {store.row(run_id)["state"] for run_id in runs} == {"failed"}


def test_what_executes_does_not_expire(store: Store) -> None:
    """I2: only its attempt ends a running run; its worker stops it at the deadline."""
    run_id = store.start(deadline_ms=10)
    row = store.claim_one(worker := store.worker())
    store.clock.advance(10_000)

    assert store.write(expire_runs, NAMESPACE, 100) == 0
    assert store.report(row, worker, Succeeded("1"))
    assert store.status(run_id) == Completed(Success(1))


def test_runs_of_another_namespace_do_not_expire(store: Store) -> None:
    store.start(deadline_ms=1)
    store.clock.advance(10)

    assert store.write(expire_runs, "elsewhere", 100) == 0


def test_a_completed_run_does_not_expire(store: Store) -> None:
    """I3, I5: final until retry."""
    run_id = store.start(deadline_ms=1)
    store.write(cancel_run, NAMESPACE, run_id)
    store.clock.advance(10)

    assert store.write(expire_runs, NAMESPACE, 100) == 0
    assert store.status(run_id) == Completed(Canceled())


@pytest.mark.parametrize("end", ["canceled", "failed"])
def test_whoever_ends_a_run_without_calling_back_leaves_the_callback_pending(store: Store, end: str) -> None:
    """I4: every completion owes the callback, whichever way it came about."""
    run_id = store.start(max_failures=0, on_complete="done")
    worker = store.worker(mutations=("done",))
    store.claim_one(worker)

    if end == "canceled":
        store.write(cancel_run, NAMESPACE, run_id)
    else:
        store.lose(worker)

    row = store.row(run_id)
    assert (row["state"], row["callback_state"]) == (end, "pending")
    assert (row["callback_due_at"], row["callback_tries"]) == (store.clock.now_us(), 0)


def test_a_zero_delay_keeps_the_due_time(store: Store) -> None:
    """A run without backoff does not lose its place among those of its priority."""
    first = store.start(initial_backoff_ms=0)
    second = store.start(delay_ms=1)
    worker = store.worker()
    row = store.claim_one(worker)
    store.clock.advance(5)

    store.report(row, worker, Raised("E", "e"))

    assert store.claim_ids(worker, 1) == [first]
    assert store.claim_ids(worker, 1) == [second]


def test_a_move_says_what_is_written(store: Store) -> None:
    """The operation writes the move as it is; it decides nothing."""
    run_id = store.start()
    row = store.claim_one(worker := store.worker())

    move = Reschedule(delay_us=123, failures=1, losses=1)
    assert store.write(apply_moves, [Settled(run_id, row["attempt"], worker.id, move)]).owned == {(run_id, 1)}

    stored = store.row(run_id)
    assert (stored["state"], stored["failures"], stored["losses"]) == (State.PENDING, 1, 1)
    assert stored["due_at"] == store.clock.now_us() + 123
    assert store.attempts(run_id) == []
