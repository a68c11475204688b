"""The store moves along the state machine: every state, every event, and nothing else."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from action_retrier._lifecycle import TRANSITIONS, Event, NotBegun, Outcome, Raised, State, Succeeded
from action_retrier._ops.control import cancel_run, clean_up_run, retry_run
from action_retrier._ops.reports import expire_runs
from action_retrier.errors import RunInProgress, RunNotFound, RunSucceeded

from .. import invariants
from ..stores import NAMESPACE, Store

DEADLINE_MS = 1_000_000


def bring(store: Store, state: State) -> str:
    """Return a run that is in *state*."""
    run_id = store.start(deadline_ms=DEADLINE_MS, initial_backoff_ms=1000)
    worker = store.worker()
    match state:
        case State.PENDING:
            store.report(store.claim_one(worker), worker, Raised("E", "e"))
        case State.RUNNING:
            store.claim_one(worker)
        case State.SUCCEEDED:
            store.report(store.claim_one(worker), worker, Succeeded("1"))
        case State.FAILED:
            store.report(store.claim_one(worker), worker, Raised("E", "e", retryable=False))
        case State.CANCELED:
            store.write(cancel_run, NAMESPACE, run_id)
    assert store.row(run_id)["state"] == state
    return run_id


def report(outcome: Outcome) -> Callable[[Store, str], object]:
    """Report as whoever knows the number of the current attempt would."""

    def happen(store: Store, run_id: str) -> None:
        row = store.row(run_id)
        deadline_in = row["deadline_at"] - store.clock.now_us()
        store.report(row | {"deadline_in": deadline_in}, store.worker(), outcome)

    return happen


def claim(store: Store, _: str) -> None:
    store.clock.advance(1000)
    store.claim(store.worker())


def expire(store: Store, _: str) -> None:
    store.clock.advance(DEADLINE_MS)
    store.write(expire_runs, NAMESPACE, 10)


HAPPEN: dict[Event, Callable[[Store, str], Any]] = {
    Event.CLAIM: claim,
    Event.GIVE_BACK: report(NotBegun()),
    Event.SUCCEED: report(Succeeded("2")),
    Event.FAIL: report(Raised("E", "another")),
    Event.GIVE_UP: report(Raised("E", "the last", retryable=False)),
    Event.EXPIRE: expire,
    Event.CANCEL: lambda store, run_id: store.write(cancel_run, NAMESPACE, run_id),
    Event.RETRY: lambda store, run_id: store.write(retry_run, NAMESPACE, run_id),
    Event.CLEAN_UP: lambda store, run_id: store.write(clean_up_run, NAMESPACE, run_id, discard_callback=False),
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_a_run_goes_where_the_table_says_or_stays_as_it_is(store: Store, state: State, event: Event) -> None:
    """I1, I2, I3, I5, I9: what is not in the table does not happen."""
    run_id = bring(store, state)
    before = store.snapshot()

    with contextlib.suppress(RunInProgress, RunSucceeded):
        HAPPEN[event](store, run_id)

    after = store.snapshot()
    invariants.check_step(before, after)
    if (state, event) not in TRANSITIONS:
        assert after["runs"] == before["runs"]
        assert after["attempts"] == before["attempts"]
        return
    expected = TRANSITIONS[state, event]
    if expected is None:
        with pytest.raises(RunNotFound):
            store.status(run_id)
    else:
        assert store.row(run_id)["state"] == expected
        assert after["runs"] != before["runs"]


def test_a_pending_run_that_has_not_begun_may_be_claimed_canceled_and_expired(store: Store) -> None:
    """I1: the first attempt is no special case."""
    for event, expected in ((Event.CLAIM, "running"), (Event.CANCEL, "canceled"), (Event.EXPIRE, "failed")):
        run_id = store.start(deadline_ms=DEADLINE_MS)
        HAPPEN[event](store, run_id)
        assert store.row(run_id)["state"] == expected
