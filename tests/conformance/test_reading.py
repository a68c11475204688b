"""What callers are told of runs, alone and in pages, and what runs wait for."""

from datetime import timedelta
from typing import Any

import pytest

from action_retrier._lifecycle import Raised, Succeeded
from action_retrier._ops.control import cancel_run
from action_retrier._ops.reads import page_of, read_run, read_runs
from action_retrier._ops.reports import CallbackMark, store_progress
from action_retrier._ops.starts import start_runs
from action_retrier._ops.workers import waiting_lanes
from action_retrier.errors import RunNotFound
from action_retrier.results import Callback, Canceled, Completed, Failed, InProgress, Page, Success

from ..stores import NAMESPACE, Store

UNKNOWN = "01890000-0000-7000-8000-000000000000"


def test_everything_known_about_a_run_is_told(store: Store) -> None:
    """`get` says what was asked for, what has happened, and what comes next."""
    started = store.clock.now()
    run_id = store.start(
        args='{"order": 7}', context='"mail"', on_complete="done", key="k", priority=2, queue="q", max_failures=1
    )
    worker = store.worker(mutations=("done",))
    store.clock.advance(10)
    row = store.claim_one(worker)
    store.clock.advance(20)
    store.report(row, worker, Raised("ValueError", "first", "traceback"))
    store.clock.advance(250)
    row = store.claim_one(worker)
    store.write(store_progress, [(run_id, 2, (0.5, "half"))])
    store.clock.advance(5)
    store.report(row, worker, Succeeded('{"ok": true}'), CallbackMark("done", tries=1))

    run = store.get(run_id)

    assert (run.id, run.action, run.state, run.queue, run.priority) == (run_id, "charge", "succeeded", "q", 2)
    assert (run.args, run.context, run.idempotency_key) == ({"order": 7}, "mail", "k")
    assert run.options["max_failures"] == 1
    assert run.created_at == started
    assert run.started_at == started + timedelta(milliseconds=10)
    assert run.due_at == started + timedelta(milliseconds=280)
    assert run.completed_at == started + timedelta(milliseconds=285)
    assert run.result == Success({"ok": True})
    assert run.callback == Callback("done", "done", 1, None)
    assert run.failures == 1
    assert run.progress is not None
    assert run.progress.fraction == 0.5
    first, second = run.attempts
    assert (first.number, first.error_type, first.error, first.delay_ms) == (1, "ValueError", "first", 250)
    assert (second.number, second.error_type, second.ended_at) == (2, None, run.completed_at)
    assert {first.worker, second.worker} == {worker.id}


def test_a_running_attempt_is_told_before_it_ends(store: Store) -> None:
    run_id = store.start()
    worker = store.worker()
    store.claim_one(worker)

    (attempt,) = store.get(run_id).attempts

    assert (attempt.number, attempt.worker, attempt.ended_at, attempt.error_type) == (1, worker.id, None, None)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("nothing", InProgress()),
        ("claim", InProgress()),
        ("success", Completed(Success([1, None]))),
        ("failure", Completed(Failed("no", "ValueError"))),
        ("cancel", Completed(Canceled())),
    ],
)
def test_a_status_says_whether_and_how_a_run_has_ended(store: Store, end: str, expected: Any) -> None:
    run_id = store.start(max_failures=0)
    worker = store.worker()
    if end == "cancel":
        store.write(cancel_run, NAMESPACE, run_id)
    elif end != "nothing":
        row = store.claim_one(worker)
        outcomes = {"success": Succeeded("[1, null]"), "failure": Raised("ValueError", "no")}
        if end in outcomes:
            store.report(row, worker, outcomes[end])

    assert store.status(run_id) == expected


def test_an_unknown_id_is_not_found(store: Store) -> None:
    with pytest.raises(RunNotFound, match=UNKNOWN):
        store.status(UNKNOWN)
    with pytest.raises(RunNotFound, match=UNKNOWN):
        store.read(read_run, NAMESPACE, UNKNOWN)


# Pages.


def page(store: Store, count: int = 100, **filters: Any) -> Page:
    asked = {"state": None, "actions": None, "queue": None, "callback": None, "before": None} | filters
    return page_of(*store.read(read_runs, NAMESPACE, **asked, count=count + 1), count)


def test_pages_hold_every_run_once_the_newest_first(store: Store) -> None:
    """A cursor goes on where the page ended, also when runs are started meanwhile."""
    runs = [store.start() for _ in range(7)]
    worker = store.worker()
    for row in store.claim(worker).runs:
        store.report(row, worker, Raised("E", row["id"]))

    first = page(store, 3)
    newer = store.start()
    second = page(store, 3, before=first.cursor)
    third = page(store, 3, before=second.cursor)

    seen = [run.id for one in (first, second, third) for run in one.runs]
    assert seen == runs[::-1]
    assert newer not in seen
    assert (first.cursor, third.cursor) == (runs[4], None)
    assert [run.attempts[0].error for run in first.runs] == [run.id for run in first.runs]


def test_the_last_page_says_so_even_when_it_is_full(store: Store) -> None:
    for _ in range(4):
        store.start()

    first = page(store, 2)
    assert first.cursor is not None
    assert page(store, 2, before=first.cursor).cursor is None


def test_no_runs_are_an_empty_page(store: Store) -> None:
    assert page(store) == Page([], None)


def test_filters_leave_what_they_name(store: Store) -> None:
    worker = store.worker("charge", "refund", mutations=("done",))
    canceled = store.start("charge", on_complete="done")
    store.write(cancel_run, NAMESPACE, canceled)
    succeeded = store.start("refund", queue="a")
    store.report(store.claim_one(worker), worker, Succeeded("1"))
    done = store.start("refund", on_complete="done")
    store.report(store.claim_one(worker), worker, Succeeded("1"), CallbackMark("done", tries=1))
    pending = store.start("charge", queue="a")
    store.write(start_runs, "elsewhere", [store.starting()])

    def ids(**filters: str) -> list[str]:
        return [run.id for run in page(store, **filters).runs]

    assert ids() == [pending, done, succeeded, canceled]
    assert ids(state="succeeded") == [done, succeeded]
    assert ids(state="running") == []
    assert ids(actions=["charge"]) == [pending, canceled]
    assert ids(queue="a") == [pending, succeeded]
    assert ids(callback="pending") == [canceled]
    assert ids(callback="done") == [done]
    assert ids(callback="none") == [pending, succeeded]
    assert ids(actions=["refund", "gone"], queue="a", state="succeeded") == [succeeded]


# What runs wait for.


@pytest.mark.parametrize(
    ("actions", "mutations", "blocked_by"),
    [
        (None, (), "charge"),
        (("refund",), ("done",), "charge"),
        (("charge",), (), "done"),
        (("charge",), ("done",), None),
    ],
)
def test_a_due_run_says_what_no_worker_knows(
    store: Store, actions: tuple[str, ...] | None, mutations: tuple[str, ...], blocked_by: str | None
) -> None:
    """A run whose action, or callback, nobody knows waits, and says for what."""
    run_id = store.start("charge", on_complete="done")
    if actions is not None:
        store.worker(*actions, mutations=mutations)

    assert store.get(run_id).blocked_by == blocked_by


def test_a_run_that_does_not_wait_is_blocked_by_nothing(store: Store) -> None:
    scheduled = store.start("nobody knows it", delay_ms=1)
    running = store.start("charge")
    worker = store.worker()
    store.claim_one(worker)
    store.lose(store.worker())

    assert store.get(scheduled).blocked_by is None
    assert store.get(running).blocked_by is None
    store.clock.advance(1)
    assert store.get(scheduled).blocked_by == "nobody knows it"


def test_a_pending_callback_is_blocked_while_no_worker_knows_it(store: Store) -> None:
    run_id = store.start("charge", on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    assert store.get(run_id).blocked_by == "done"

    store.worker("refund", mutations=("done",))

    assert store.get(run_id).blocked_by is None


def test_one_worker_need_not_know_both(store: Store) -> None:
    """Visibility is about names that nobody knows."""
    run_id = store.start("charge", on_complete="done")
    store.worker("charge")
    store.worker("refund", mutations=("done",))

    assert store.get(run_id).blocked_by is None


def test_lanes_say_what_is_due_a_row_a_kind_of_work(store: Store) -> None:
    """Workers warn of what waits for a name that nobody knows: suspects included, what is for later not."""
    store.start("b", priority=1, delay_ms=2)
    store.start("b", delay_ms=1)
    store.start("a", queue="z", on_complete="done", delay_ms=3)
    store.start("later", delay_ms=1000)
    doomed = store.worker("lost")
    store.start("lost", initial_backoff_ms=0)
    store.claim_one(doomed)
    store.lose(doomed)
    start_us = store.clock.now_us()
    store.clock.advance(5)

    lanes = store.read(waiting_lanes, NAMESPACE)

    assert [(one["queue"], one["action"], one["on_complete"], one["due_at"] - start_us) for one in lanes] == [
        ("default", "b", "", 1000),
        ("default", "lost", "", 0),
        ("z", "a", "done", 3000),
    ]
    assert store.read(waiting_lanes, "elsewhere") == []
