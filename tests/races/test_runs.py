"""Two who want the same run at once: one of them has it, and the other one is told."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from random import Random
from typing import Any

import pytest

from action_retrier._lifecycle import Raised, Succeeded
from action_retrier._ops.claims import ANY_LOSSES, Claimant, claim_callbacks, claim_runs
from action_retrier._ops.control import Filter, cancel_run, cancel_runs, clean_up_run, prune_runs, retry_run
from action_retrier._ops.reports import CallbackMark, apply_moves, expire_runs, finish_callback, postpone_callback
from action_retrier._ops.starts import start_runs
from action_retrier._ops.workers import list_owners, recover_worker, register_worker
from action_retrier.drivers import Database
from action_retrier.errors import IdempotencyConflict, RunInProgress, RunNotFound
from action_retrier.results import Canceled, Completed, InProgress, Success

from ..stores import LIMIT_S, NAMESPACE, Store, in_thread, until

TIMES = 12
"""How often two that start together are let loose on each other."""


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls in threads that start at the same moment; return what they return, or raise."""
    barrier = threading.Barrier(len(calls))

    def make(call: Callable[[], Any]) -> Any:
        barrier.wait(LIMIT_S)
        return call()

    return [future.result(LIMIT_S) for future in [in_thread(make, call) for call in calls]]


def blocked(store: Store, call: Callable[[], Any]) -> "Future[Any]":
    """Begin a write that has to wait for somebody else's open transaction, or goes without what that one holds."""
    future = in_thread(call)
    until(lambda: future.done() or store.system.waiting(store.database) == 0)
    return future


def report(store: Store, settled: Any) -> bool:
    """Report until nobody's open transaction holds the run any more; tell whether the attempt owned it."""
    while True:
        applied = store.write(apply_moves, [settled])
        if not applied.busy:
            return bool(applied.owned)


class Uncommitted:
    """A transaction of the user's that is open, on a connection of his own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.connection: Any = store.system.connect()

    def run(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._store.through(self.connection, op, *args, **kwargs)

    def end(self, *, commit: bool) -> None:
        self.connection.commit() if commit else self.connection.rollback()


@pytest.fixture
def user(store: Store) -> Uncommitted:
    return Uncommitted(store)


# Cancel.


@pytest.mark.parametrize("commit", [True, False])
def test_a_report_waits_for_an_uncommitted_cancel_and_obeys_it(
    store: Store, user: Uncommitted, *, commit: bool
) -> None:
    """I3, I5, I6: cancel's True holds from its commit on; rolled back it was nothing."""
    run_id = store.start()
    worker = store.worker()
    row = store.claim_one(worker)
    assert user.run(cancel_run, NAMESPACE, run_id) is True

    reported = blocked(store, lambda: report(store, store.settled(row, worker, Succeeded('"it"'))))
    assert store.status(run_id) == InProgress()
    user.end(commit=commit)

    assert reported.result(LIMIT_S) is not commit
    assert store.status(run_id) == Completed(Canceled() if commit else Success("it"))


@pytest.mark.parametrize("commit", [True, False])
def test_a_claim_obeys_an_uncommitted_cancel(store: Store, user: Uncommitted, *, commit: bool) -> None:
    """I5: a canceled run does not begin. The claim waits, or leaves the run to the next one."""
    run_id = store.start()
    worker = store.worker()
    user.run(cancel_run, NAMESPACE, run_id)

    claim = blocked(store, lambda: store.claim_ids(worker))
    user.end(commit=commit)

    assert claim.result(LIMIT_S) + store.claim_ids(worker) == ([] if commit else [run_id])


@pytest.mark.parametrize("commit", [True, False])
def test_a_claim_does_not_see_an_uncommitted_start(store: Store, user: Uncommitted, *, commit: bool) -> None:
    """I6: no action starts before the commit."""
    start = store.starting()
    worker = store.worker()
    user.run(start_runs, NAMESPACE, [start])
    claim = blocked(store, lambda: store.claim_ids(worker))
    user.end(commit=commit)

    assert claim.result(LIMIT_S) + store.claim_ids(worker) == ([start.id] if commit else [])


@pytest.mark.parametrize("round_", range(TIMES))
def test_cancel_and_report_at_once_have_one_outcome(store: Store, other: Database, round_: int) -> None:
    """I3, I5: exactly one of them ended the run, and both know which."""
    run_id = store.start(on_complete="done")
    worker = store.worker(mutations=("done",))
    settled = store.settled(store.claim_one(worker), worker, Succeeded("1"), CallbackMark("done", tries=1))

    canceled, applied = together(
        lambda: store.database.write_sync(lambda: cancel_run(NAMESPACE, run_id)),
        lambda: other.write_sync(lambda: apply_moves([settled])),
    )

    assert canceled is not bool(applied.owned)
    assert store.status(run_id) == Completed(Canceled() if canceled else Success(1))
    assert store.row(run_id)["callback_state"] == ("pending" if canceled else "done")


@pytest.mark.parametrize("round_", range(TIMES))
def test_cancel_and_claim_at_once(store: Store, other: Database, round_: int) -> None:
    """I5: canceled for good, whether or not an attempt began; and an attempt that began is on record."""
    run_id = store.start()
    worker = store.worker()

    canceled, claimed = together(
        lambda: store.database.write_sync(lambda: cancel_run(NAMESPACE, run_id)),
        lambda: other.write_sync(lambda: claim_runs(worker, 1, ANY_LOSSES)),
    )

    assert canceled
    assert store.status(run_id) == Completed(Canceled())
    assert [row["error_type"] for row in store.attempts(run_id)] == ["Canceled"] * len(claimed.runs)
    for row in claimed.runs:
        assert not store.report(row, worker, Succeeded("1"))


def test_two_cancels_at_once_say_true_once(store: Store, other: Database) -> None:
    runs = [store.start() for _ in range(10)]
    answers = together(
        lambda: [store.database.write_sync(lambda run_id=run_id: cancel_run(NAMESPACE, run_id)) for run_id in runs],
        lambda: [other.write_sync(lambda run_id=run_id: cancel_run(NAMESPACE, run_id)) for run_id in runs],
    )

    assert [one + two for one, two in zip(*answers, strict=True)] == [1] * len(runs)


# Claims.


def test_many_claimers_take_every_run_once(store: Store, other: Database) -> None:
    """I2: whichever process and thread they are in."""
    runs = {store.start(priority=number % 3) for number in range(200)}
    workers = [store.worker() for _ in range(6)]

    def claim_all(database: Database, worker: Claimant) -> list[tuple[str, int]]:
        taken: list[tuple[str, int]] = []
        while True:
            claimed = database.write_sync(lambda: claim_runs(worker, 7, ANY_LOSSES))
            if not claimed.runs:
                return taken
            taken += [(row["id"], row["attempt"]) for row in claimed.runs]

    databases = [store.database, other]
    taken = together(
        *(
            lambda number=number, worker=worker: claim_all(databases[number % 2], worker)
            for number, worker in enumerate(workers)
        )
    )

    counts = Counter(run_id for one in taken for run_id, _ in one)
    assert counts == Counter(runs)
    assert {attempt for one in taken for _, attempt in one} == {1}
    owners = {row["id"]: row["worker"] for row in store.system.table("runs")}
    for worker, one in zip(workers, taken, strict=True):
        assert {owners[run_id] for run_id, _ in one} <= {worker.id}


def test_many_callers_take_every_callback_once(store: Store, other: Database) -> None:
    """I4: one try at a time."""
    for _ in range(50):
        store.start(on_complete="done")
    store.write(cancel_runs, NAMESPACE, Filter())
    workers = [store.worker(mutations=("done",)) for _ in range(4)]

    def claim_all(database: Database, worker: Claimant) -> list[str]:
        taken: list[str] = []
        while True:
            rows = database.write_sync(lambda: claim_callbacks(worker, 3, ANY_LOSSES))
            if not rows:
                return taken
            taken += [row["id"] for row in rows]

    taken = together(
        *(
            lambda number=number, worker=worker: claim_all([store.database, other][number % 2], worker)
            for number, worker in enumerate(workers)
        )
    )

    assert Counter(run_id for one in taken for run_id in one) == Counter(
        row["id"] for row in store.system.table("runs")
    )
    assert {row["callback_tries"] for row in store.system.table("runs")} == {1}


@pytest.mark.parametrize("round_", range(TIMES))
def test_a_worker_that_is_recovered_while_it_claims_owns_nothing_for_ever(
    store: Store, other: Database, round_: int
) -> None:
    """I1: a claim comes before the recovery, which settles it, or finds the worker's row gone, or the next one does."""
    run_id = store.start()
    worker = store.worker()

    claimed, recovered = together(
        lambda: store.database.write_sync(lambda: claim_runs(worker, 1, ANY_LOSSES)),
        lambda: other.write_sync(lambda: recover_worker(worker.id, Random(1))),
    )

    if store.row(run_id)["state"] == "running":
        assert store.read(list_owners, NAMESPACE) == {worker.id}
        recovered = store.write(recover_worker, worker.id, Random(1))
    row = store.row(run_id)
    assert row["state"] == "pending"
    assert recovered.is_over
    assert recovered.settled == len(claimed.runs) == row["failures"] == row["attempt"]
    assert claimed.registered is bool(claimed.runs)


# Starts.


@pytest.mark.parametrize("colour", ["sync", "async", "both"])
def test_a_key_that_a_hundred_start_at_once_starts_one_run(store: Store, other: Database, colour: str) -> None:
    """Unique per namespace and action, whoever was first."""
    starts = [store.starting(key="k") for _ in range(100)]

    def sync(database: Database, mine: list[Any]) -> list[str]:
        futures = [in_thread(database.write_sync, lambda one=one: start_runs(NAMESPACE, [one])) for one in mine]
        return [future.result(LIMIT_S)[0] for future in futures]

    def awaited(database: Database, mine: list[Any]) -> list[str]:
        async def main() -> list[list[str]]:
            return await asyncio.gather(*(database.write(lambda one=one: start_runs(NAMESPACE, [one])) for one in mine))

        return [ids[0] for ids in asyncio.run(main())]

    first = awaited if colour == "async" else sync
    second = sync if colour == "sync" else awaited
    ids = together(lambda: first(store.database, starts[:50]), lambda: second(other, starts[50:]))

    assert len({run_id for one in ids for run_id in one}) == 1
    (row,) = store.system.table("runs")
    assert row["id"] in {start.id for start in starts}


def test_a_key_with_different_arguments_at_once_has_one_winner(store: Store, other: Database) -> None:
    """All others are told that it is taken, and leave nothing."""
    starts = [store.starting(key="k", args=f'{{"n": {number}}}') for number in range(40)]

    def start(database: Database, one: Any) -> str | None:
        try:
            return database.write_sync(lambda: start_runs(NAMESPACE, [one]))[0]
        except IdempotencyConflict as error:
            return f"lost to {error.run_id}"

    answers = together(
        *(
            lambda number=number, one=one: start([store.database, other][number % 2], one)
            for number, one in enumerate(starts)
        )
    )

    (row,) = store.system.table("runs")
    assert Counter(answers) == Counter({row["id"]: 1, f"lost to {row['id']}": 39})


@pytest.mark.parametrize("commit", [True, False])
def test_a_key_in_an_uncommitted_transaction_is_waited_for(store: Store, user: Uncommitted, *, commit: bool) -> None:
    """I6: a key of a run that was rolled back is free."""
    first, second = store.starting(key="k"), store.starting(key="k")
    user.run(start_runs, NAMESPACE, [first])

    start = blocked(store, lambda: store.database.write_sync(lambda: start_runs(NAMESPACE, [second]), apart=True))
    user.end(commit=commit)

    assert start.result(LIMIT_S) == [first.id if commit else second.id]


def test_the_same_start_repeated_at_once_inserts_once(store: Store, other: Database) -> None:
    """I2: a client that repeats what it is unsure of may overtake itself."""
    start = store.starting()

    answers = together(
        *(
            lambda database=database: database.write_sync(lambda: start_runs(NAMESPACE, [start]))
            for database in (store.database, other) * 4
        )
    )

    assert answers == [[start.id]] * 8
    assert len(store.system.table("runs")) == 1


# Deaths.


@pytest.mark.parametrize("round_", range(TIMES))
@pytest.mark.parametrize("outcome", [Succeeded("1"), Raised("E", "e")], ids=["success", "failure"])
def test_recovery_and_a_late_report_count_once(store: Store, other: Database, outcome: Any, round_: int) -> None:
    """I2, I3, I8: one of them settles the attempt, the other one changes nothing."""
    run_id = store.start()
    worker = store.worker()
    settled = store.settled(store.claim_one(worker), worker, outcome)

    applied, recovered = together(
        lambda: store.database.write_sync(lambda: apply_moves([settled])),
        lambda: other.write_sync(lambda: recover_worker(worker.id, Random(1))),
    )

    assert len(applied.owned) + recovered.settled == 1
    row = store.row(run_id)
    expected = "WorkerLost" if recovered.settled else outcome.error_type if isinstance(outcome, Raised) else None
    assert [one["error_type"] for one in store.attempts(run_id)] == ([expected] if expected else [])
    assert row["failures"] == len(store.attempts(run_id))
    assert row["state"] == ("pending" if expected else "succeeded")


def test_many_who_recover_one_worker_count_its_death_once(store: Store, other: Database) -> None:
    """I8: no leader: everybody notices, and the fence lets one of them settle it."""
    runs = [store.start() for _ in range(5)]
    dead = store.worker()
    store.claim(dead)

    counts = together(
        *(
            lambda database=database: database.write_sync(lambda: recover_worker(dead.id, Random(1)))
            for database in (store.database, other) * 3
        )
    )

    assert sum(one.settled for one in counts) == 5
    assert store.lose(dead) == 0
    assert store.system.table("workers") == []
    assert {store.row(run_id)["failures"] for run_id in runs} == {1}


@pytest.mark.parametrize("round_", range(TIMES))
def test_a_worker_that_comes_back_while_it_is_recovered_has_a_new_id(
    store: Store, other: Database, round_: int
) -> None:
    """I1: the new incarnation's runs are its own; the old one's are settled."""
    store.start()
    old = store.worker()
    store.claim_one(old)
    fresh = store.worker(register=False)
    second = store.start()

    def come_back() -> list[str]:
        store.database.write_sync(lambda: register_worker(fresh, "host", 1))
        claimed = store.database.write_sync(lambda: claim_runs(fresh, 5, 0))
        return [row["id"] for row in claimed.runs]

    taken, _ = together(come_back, lambda: other.write_sync(lambda: recover_worker(old.id, Random(1))))

    assert taken == [second]
    assert store.row(second)["worker"] == fresh.id


# Callbacks.


@pytest.mark.parametrize("round_", range(TIMES))
def test_a_callback_that_is_discarded_while_it_is_called(store: Store, other: Database, round_: int) -> None:
    """I4: either it committed before the run was removed, or it finds nothing to mark and writes nothing."""
    run_id = store.start(on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    worker = store.worker(mutations=("done",))
    store.claim_callbacks(worker)

    def call_back() -> bool:
        with store.database.transaction_sync() as transaction:
            marked = transaction.run_sync(finish_callback(run_id, worker.id, 1))
            if marked:
                store.system.write_note(transaction.connection("sync"), run_id)
            return marked

    called, discarded = together(
        call_back, lambda: other.write_sync(lambda: clean_up_run(NAMESPACE, run_id, discard_callback=True))
    )

    assert store.system.table("runs") == []
    assert called is not discarded
    assert store.system.notes() == ([run_id] if called else [])


@pytest.mark.parametrize("op", ["cleanup", "retry"])
@pytest.mark.parametrize("round_", range(TIMES))
def test_a_pending_callback_keeps_others_off_until_it_has_committed(
    store: Store, other: Database, op: str, round_: int
) -> None:
    """I4: the one who comes too early is refused; the callback's writes are there exactly once."""
    run_id = store.start(on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    worker = store.worker(mutations=("done",))
    store.claim_callbacks(worker)

    def call_back() -> bool:
        with store.database.transaction_sync() as transaction:
            marked = transaction.run_sync(finish_callback(run_id, worker.id, 1))
            store.system.write_note(transaction.connection("sync"), run_id)
            return marked

    def disturb() -> bool:
        try:
            if op == "retry":
                other.write_sync(lambda: retry_run(NAMESPACE, run_id))
            else:
                other.write_sync(lambda: clean_up_run(NAMESPACE, run_id, discard_callback=False))
        except RunInProgress:
            return False
        return True

    called, disturbed = together(call_back, disturb)

    assert called
    assert store.system.notes() == [run_id]
    states = [row["state"] for row in store.system.table("runs")]
    assert states == ({"retry": ["pending"], "cleanup": []}[op] if disturbed else ["canceled"])


@pytest.mark.parametrize("op", ["cleanup", "retry"])
def test_who_has_waited_for_a_callback_to_commit_finds_it_done(store: Store, other: Database, op: str) -> None:
    """I4: what counts is what the run has become, not what it was when the waiting began."""
    run_id = store.start(on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    worker = store.worker(mutations=("done",))
    store.claim_callbacks(worker)
    ops = {
        "retry": lambda: retry_run(NAMESPACE, run_id),
        "cleanup": lambda: clean_up_run(NAMESPACE, run_id, discard_callback=False),
    }
    with store.database.transaction_sync() as transaction:
        assert transaction.run_sync(finish_callback(run_id, worker.id, 1))
        waits = in_thread(other.write_sync, ops[op])
        until(store.system.waits_for_a_lock)

    waits.result(LIMIT_S)

    states = [row["state"] for row in store.system.table("runs")]
    assert states == {"retry": ["pending"], "cleanup": []}[op]


@pytest.mark.parametrize("round_", range(TIMES))
def test_a_callback_and_the_recovery_of_its_worker(store: Store, other: Database, round_: int) -> None:
    """I4: it is done, or to be called again; never both."""
    run_id = store.start(on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    worker = store.worker(mutations=("done",))
    store.claim_callbacks(worker)

    done, _ = together(
        lambda: store.database.write_sync(lambda: finish_callback(run_id, worker.id, 1)),
        lambda: other.write_sync(lambda: recover_worker(worker.id, Random(1))),
    )

    row = store.row(run_id)
    assert (row["callback_state"], row["callback_losses"]) == (("done", 0) if done else ("pending", 1))
    assert not store.write(postpone_callback, run_id, worker.id, 1, 0, "E: e")


# Retry.


@pytest.mark.parametrize("round_", range(TIMES))
def test_retry_and_cancel_at_once(store: Store, other: Database, round_: int) -> None:
    """I5: canceled stays canceled until retry, in whichever order they come."""
    run_id = store.start(max_failures=0)
    worker = store.worker()
    store.report(store.claim_one(worker), worker, Raised("E", "e"))

    _, canceled = together(
        lambda: store.database.write_sync(lambda: retry_run(NAMESPACE, run_id)),
        lambda: other.write_sync(lambda: cancel_run(NAMESPACE, run_id)),
    )

    assert store.status(run_id) == (Completed(Canceled()) if canceled else InProgress())


@pytest.mark.parametrize("round_", range(TIMES))
def test_retry_and_retention_at_once(store: Store, other: Database, round_: int) -> None:
    """I1, I9: a run that is in progress again is not removed; one that is removed is not found."""
    run_id = store.start(max_failures=0)
    worker = store.worker()
    store.report(store.claim_one(worker), worker, Raised("E", "e"))
    store.clock.advance(1000)

    def retry() -> bool:
        try:
            store.database.write_sync(lambda: retry_run(NAMESPACE, run_id))
        except RunNotFound:
            return False
        return True

    retried, removed = together(retry, lambda: other.write_sync(lambda: prune_runs(NAMESPACE, 1000, 10)))

    assert retried is not bool(removed)
    assert len(store.system.table("runs")) == int(retried)
    assert len(store.system.table("attempts")) == int(retried)


@pytest.mark.parametrize("round_", range(TIMES))
def test_expiry_and_claim_at_once(store: Store, other: Database, round_: int) -> None:
    """A run past its deadline is failed, and not begun by whoever is a moment slower."""
    run_id = store.start(deadline_ms=10)
    worker = store.worker()
    store.clock.advance(10)

    expired, claimed = together(
        lambda: store.database.write_sync(lambda: expire_runs(NAMESPACE, 10)),
        lambda: other.write_sync(lambda: claim_runs(worker, 1, ANY_LOSSES)),
    )

    assert (expired, claimed.runs) == (1, [])
    assert store.row(run_id)["state"] == "failed"


@pytest.mark.parametrize("commit", [True, False])
def test_retention_respects_an_uncommitted_retry(store: Store, user: Uncommitted, *, commit: bool) -> None:
    run_id = store.start(max_failures=0)
    worker = store.worker()
    store.report(store.claim_one(worker), worker, Raised("E", "e"))
    store.clock.advance(10_000)
    user.run(retry_run, NAMESPACE, run_id)

    def prune() -> int:
        return store.database.write_sync(lambda: prune_runs(NAMESPACE, 1000, 10))

    pruned = in_thread(prune)  # waits on SQLite; leaves it for another time where nobody has to wait
    user.end(commit=commit)

    assert pruned.result(LIMIT_S) + prune() == (0 if commit else 1)


def test_a_users_transaction_that_dies_holds_nobody_up(store: Store, user: Uncommitted) -> None:
    """I6: a connection that is closed with its transaction open has rolled it back."""
    start = store.starting()
    user.run(start_runs, NAMESPACE, [start])
    claim = blocked(store, lambda: store.claim_ids(store.worker()))
    user.connection.close()

    assert claim.result(LIMIT_S) == []
    with pytest.raises(RunNotFound):
        store.status(start.id)
