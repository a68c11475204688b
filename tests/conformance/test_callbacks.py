"""Callbacks by themselves: claimed like runs, counted before the call, done once."""

import contextlib
from typing import Any

import pytest

from action_retrier._lifecycle import Raised, Succeeded
from action_retrier._ops.claims import ANY_LOSSES, Claimant, NextDue, claim_callbacks
from action_retrier._ops.control import cancel_run, clean_up_run
from action_retrier._ops.reports import CallbackMark, finish_callback, postpone_callback, return_callbacks
from action_retrier.results import Completed, Success

from ..stores import NAMESPACE, Store


def owed(store: Store, name: str = "done", **options: Any) -> str:
    """Return a canceled run whose callback is pending."""
    run_id = store.start("charge", on_complete=name, **options)
    store.write(cancel_run, NAMESPACE, run_id)
    return run_id


def claimed(store: Store) -> tuple[str, Claimant, Any]:
    """Return a run whose callback is being called, by whom, and what was claimed."""
    run_id = owed(store)
    worker = store.worker(mutations=("done",))
    (row,) = store.claim_callbacks(worker)
    return run_id, worker, row


def test_a_claimed_callback_carries_what_calling_back_needs(store: Store) -> None:
    """The result of the run, as its status says, and the context of its start."""
    run_id = store.start("charge", on_complete="done", context='{"mail": 1}', max_failures=0)
    worker = store.worker(mutations=("done",))
    store.report(store.claim_one(worker), worker, Raised("ValueError", "no"))

    (row,) = store.claim_callbacks(worker)

    assert (row["id"], row["on_complete"], row["context"]) == (run_id, "done", '{"mail": 1}')
    assert (row["state"], row["error_type"], row["error"], row["result"]) == ("failed", "ValueError", "no", None)
    assert (row["callback_tries"], row["callback_losses"]) == (1, 0)


def test_the_try_is_counted_before_the_call(store: Store) -> None:
    """I4: a callback that kills its process has been counted in a commit before it began."""
    run_id, worker, _ = claimed(store)

    row = store.row(run_id)
    assert (row["callback_state"], row["callback_tries"], row["callback_worker"]) == ("pending", 1, worker.id)


def test_a_callback_is_called_by_one_worker_at_a_time(store: Store) -> None:
    """I4: what is being called is claimed by nobody else, and is due for nobody."""
    _, worker, _ = claimed(store)
    other = store.worker(mutations=("done",))

    assert store.claim_callbacks(other) == []
    assert store.claim_callbacks(worker) == []
    assert store.next_due(other) == NextDue(None, None)


def test_a_callback_done_is_done(store: Store) -> None:
    """I4: once it is marked nobody can claim, mark or postpone it again."""
    run_id, worker, row = claimed(store)

    assert store.write(finish_callback, run_id, worker.id, 1)

    stored = store.row(run_id)
    assert (stored["callback_state"], stored["callback_tries"], stored["callback_worker"]) == ("done", 1, None)
    assert not store.write(finish_callback, run_id, worker.id, 1)
    assert not store.write(postpone_callback, run_id, worker.id, 1, 0, "E: e")
    assert store.claim_callbacks(worker) == []
    assert store.row(run_id) == stored
    assert row["callback_tries"] == 1


def test_a_callback_that_raised_is_due_again_later(store: Store) -> None:
    """I4: it is tried again with backoff until it commits, and says what went wrong."""
    run_id, worker, _ = claimed(store)
    store.clock.advance(7)

    assert store.write(postpone_callback, run_id, worker.id, 1, 250_000, "ValueError: no")

    callback = store.get(run_id).callback
    assert callback is not None
    assert (callback.state, callback.tries, callback.last_error) == ("pending", 1, "ValueError: no")
    assert store.claim_callbacks(worker) == []
    assert store.next_due(worker) == NextDue(None, 250_000)
    store.clock.advance(250)
    (again,) = store.claim_callbacks(worker)
    assert again["callback_tries"] == 2
    assert store.write(finish_callback, run_id, worker.id, 2)
    assert store.row(run_id)["callback_error"] == "ValueError: no"


@pytest.mark.parametrize(
    ("worker", "tries"), [("own", 0), ("own", 2), ("other", 1), ("other", 0)], ids=lambda value: str(value)
)
def test_another_try_changes_nothing(store: Store, worker: str, tries: int) -> None:
    """I4: finish and postpone are fenced by the worker and the number of the try."""
    run_id, own, _ = claimed(store)
    who = own.id if worker == "own" else store.worker(mutations=("done",)).id
    before = store.snapshot()

    assert not store.write(finish_callback, run_id, who, tries)
    assert not store.write(postpone_callback, run_id, who, tries, 0, "E: e")

    assert store.snapshot() == before


def test_a_try_that_was_taken_for_dead_changes_nothing(store: Store) -> None:
    """I4: a worker that was recovered while it called back cannot mark what an heir is calling."""
    run_id, zombie, _ = claimed(store)
    store.lose(zombie)
    store.clock.advance(1000)
    heir = store.worker(mutations=("done",))
    (row,) = store.claim_callbacks(heir)
    assert row["callback_tries"] == 2
    before = store.snapshot()

    for tries in (1, 2):
        assert not store.write(finish_callback, run_id, zombie.id, tries)
        assert not store.write(postpone_callback, run_id, zombie.id, tries, 0, "E: e")
    store.write(return_callbacks, [run_id], zombie.id)

    assert store.snapshot() == before
    assert store.write(finish_callback, run_id, heir.id, 2)


def test_a_callback_given_back_uncalled_is_not_counted(store: Store) -> None:
    """A worker that stops gives back what it has claimed and not called."""
    run_id, worker, _ = claimed(store)
    other = owed(store)
    store.claim_callbacks(worker)

    store.write(return_callbacks, [run_id, other], worker.id)

    heir = store.worker(mutations=("done",))
    rows = store.claim_callbacks(heir)
    assert {row["id"] for row in rows} == {run_id, other}
    assert [row["callback_tries"] for row in rows] == [1, 1]
    assert [row["callback_losses"] for row in rows] == [0, 0]


def test_giving_back_keeps_what_the_last_try_said(store: Store) -> None:
    run_id, worker, _ = claimed(store)
    store.write(postpone_callback, run_id, worker.id, 1, 0, "E: the last one")
    store.claim_callbacks(worker)

    store.write(return_callbacks, [run_id], worker.id)

    assert store.row(run_id)["callback_error"] == "E: the last one"


@pytest.mark.parametrize(("mutations", "takes"), [(("done",), True), (("other", "done"), True), (("other",), False)])
def test_a_worker_calls_only_what_it_knows(store: Store, mutations: tuple[str, ...], *, takes: bool) -> None:
    run_id = owed(store)
    worker = store.worker(mutations=mutations)

    assert store.next_due(worker) == NextDue(None, 0 if takes else None)
    assert [row["id"] for row in store.claim_callbacks(worker)] == ([run_id] if takes else [])


def test_a_worker_calls_back_for_actions_and_queues_that_are_not_its_own(store: Store) -> None:
    """The callback is owed by whoever knows it: the action's own workers may all be gone."""
    run_id = owed(store, queue="elsewhere")
    worker = store.worker("refund", mutations=("done",), queues=("default",))

    assert [row["id"] for row in store.claim_callbacks(worker)] == [run_id]


def test_a_worker_whose_row_is_gone_claims_no_callback(store: Store) -> None:
    run_id = owed(store)

    assert store.claim_callbacks(store.worker(mutations=("done",), register=False)) == []

    assert store.row(run_id)["callback_tries"] == 0


def test_callbacks_of_another_namespace_are_left(store: Store) -> None:
    owed(store)

    assert store.claim_callbacks(store.worker(mutations=("done",), namespace="elsewhere")) == []


def test_the_oldest_callbacks_come_first_and_no_more_than_asked_for(store: Store) -> None:
    ids = []
    for number in range(6):
        ids.append(owed(store, ("done", "other")[number % 2]))
        store.clock.advance(1)
    worker = store.worker(mutations=("done", "other"))

    claims = [[row["id"] for row in store.claim_callbacks(worker, 4)] for _ in range(2)]

    assert [set(one) for one in claims] == [set(ids[:4]), set(ids[4:])]


def test_a_callback_done_with_the_completion_is_not_claimed(store: Store) -> None:
    """I4: the mark is written with the outcome; there is nothing left to call."""
    run_id = store.start("charge", on_complete="done")
    worker = store.worker(mutations=("done",))

    assert store.report(store.claim_one(worker), worker, Succeeded("1"), CallbackMark("done", tries=1))

    assert store.status(run_id) == Completed(Success(1))
    assert store.claim_callbacks(worker) == []
    callback = store.get(run_id).callback
    assert callback is not None
    assert (callback.state, callback.tries) == ("done", 1)


def test_a_callback_that_failed_with_the_completion_waits_for_its_delay(store: Store) -> None:
    run_id = store.start("charge", on_complete="done")
    worker = store.worker(mutations=("done",))

    mark = CallbackMark("pending", tries=1, delay_us=250_000, error="E: e")
    assert store.report(store.claim_one(worker), worker, Succeeded("1"), mark)

    row = store.row(run_id)
    assert (row["callback_state"], row["callback_tries"], row["callback_error"]) == ("pending", 1, "E: e")
    assert row["callback_due_at"] == store.clock.now_us() + 250_000


def test_a_mark_that_is_rolled_back_has_not_been_made(store: Store) -> None:
    """I4: the mark and the callback's writes commit together or not at all."""
    run_id, worker, _ = claimed(store)
    with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
        assert transaction.run(finish_callback, run_id, worker.id, 1)
        transaction.note("written by the callback")
        raise ZeroDivisionError

    assert store.row(run_id)["callback_state"] == "pending"
    assert store.system.notes() == []
    with store.transaction() as transaction:
        assert transaction.run(finish_callback, run_id, worker.id, 1)
        transaction.note("written by the callback")
    assert store.row(run_id)["callback_state"] == "done"
    assert store.system.notes() == ["written by the callback"]


def test_a_discarded_callback_is_called_no_more(store: Store) -> None:
    """`cleanup(discard_callback=True)` wins over a try that is under way: its mark finds no row."""
    run_id, worker, _ = claimed(store)

    assert store.write(clean_up_run, NAMESPACE, run_id, discard_callback=True) is True

    assert not store.write(finish_callback, run_id, worker.id, 1)
    assert not store.write(postpone_callback, run_id, worker.id, 1, 0, "E: e")
    assert store.claim_callbacks(worker) == []


def test_a_claim_of_callbacks_that_is_rolled_back_counts_nothing(store: Store) -> None:
    run_id = owed(store)
    worker = store.worker(mutations=("done",))
    with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
        assert len(transaction.run(claim_callbacks, worker, 1, ANY_LOSSES)) == 1
        raise ZeroDivisionError

    assert store.row(run_id)["callback_tries"] == 0
