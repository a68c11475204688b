"""Dead workers: what they left is settled like any other outcome, once, and their rows go with it."""

import asyncio
import contextlib
from collections.abc import Iterable

import pytest

from action_retrier._lifecycle import Raised, Succeeded
from action_retrier._maintenance import Maintenance
from action_retrier._ops.claims import ANY_LOSSES, claim_callbacks
from action_retrier._ops.control import cancel_run
from action_retrier._ops.reports import finish_callback, postpone_callback
from action_retrier._ops.starts import start_runs
from action_retrier._ops.workers import list_owners, list_workers, recover_worker
from action_retrier._statements import Op
from action_retrier.results import Canceled, Completed, Failed, InProgress, Success

from ..stores import NAMESPACE, Store


def test_a_lost_run_is_tried_again_after_its_backoff(store: Store) -> None:
    """I1, I8: a death is a failure like any other, and its retry waits as long."""
    run_id = store.start(initial_backoff_ms=250)
    dead = store.worker()
    store.claim_one(dead)

    assert store.lose(dead) == 1

    row = store.row(run_id)
    assert (row["state"], row["failures"], row["losses"], row["worker"]) == ("pending", 1, 1, None)
    assert row["due_at"] == store.clock.now_us() + 250_000
    (attempt,) = store.attempts(run_id)
    assert (attempt["number"], attempt["worker"], attempt["error_type"]) == (1, dead.id, "WorkerLost")
    assert dead.id in attempt["error"]
    assert attempt["delay"] == 250_000


def test_a_run_that_kills_every_worker_ends_as_failed(store: Store) -> None:
    """I8: executions that began <= max_failures + 1, lost ones included."""
    run_id = store.start(max_failures=2, initial_backoff_ms=1, base=1, on_complete="done")
    for number in (1, 2, 3):
        worker = store.worker(mutations=("done",))
        assert store.claim_one(worker)["attempt"] == number
        assert store.lose(worker) == 1
        store.clock.advance(1)

    assert store.claim_ids(store.worker(mutations=("done",))) == []
    (last,) = [one for one in store.attempts(run_id) if one["number"] == 3]
    assert store.status(run_id) == Completed(Failed(last["error"], "WorkerLost"))
    assert last["delay"] is None
    assert store.row(run_id)["callback_state"] == "pending"


def test_lost_and_failed_attempts_count_together(store: Store) -> None:
    """I8: there is one retry rule, and a death is one of its outcomes."""
    run_id = store.start(max_failures=2, initial_backoff_ms=0)
    worker, dying = store.worker(), store.worker()
    store.report(store.claim_one(worker), worker, Raised("E", "e"))
    store.claim_one(dying)
    store.lose(dying)
    assert store.row(run_id)["failures"] == 2

    store.report(store.claim_one(worker), worker, Raised("E", "the end"))

    assert store.status(run_id) == Completed(Failed("the end", "E"))


def test_recovering_twice_is_recovering_once(store: Store) -> None:
    """I2: several workers notice a death; the fence lets one of them settle it."""
    run_id = store.start()
    dead = store.worker()
    store.claim_one(dead)
    store.lose(dead)
    before = store.snapshot()

    assert store.lose(dead) == 0

    assert store.snapshot() == before
    assert store.row(run_id)["failures"] == 1


def test_recovery_leaves_the_living_alone(store: Store) -> None:
    for _ in range(2):
        store.start()
    dead, living = store.worker(), store.worker()
    assert len(store.claim_ids(dead, 1)) == 1
    row = store.claim_one(living)

    assert store.lose(dead) == 1

    assert store.row(row["id"])["worker"] == living.id
    assert store.report(row, living, Succeeded("1"))
    assert [one["id"] for one in store.read(list_workers, NAMESPACE)] == [living.id]


def test_ten_thousand_runs_of_the_living_do_not_hide_one_of_the_dead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever recovers in batches, by age, meets those first that nobody may touch."""
    living = store.worker()
    store.write(start_runs, NAMESPACE, [store.starting() for _ in range(10_000)])
    assert sum(len(store.claim_ids(living, 5_000)) for _ in range(2)) == 10_000
    run_id = store.start()
    dying = store.worker()  # only now: its lease lasts no longer than on PostgreSQL's clock
    store.claim_one(dying)

    async def dead(workers: Iterable[str]) -> list[str]:
        return [worker for worker in workers if worker == dying.id]

    def is_still_dead(_worker: str) -> Op[bool]:
        yield from ()
        return True

    monkeypatch.setattr(store.database.leases, "dead", dead)
    monkeypatch.setattr(store.database.leases, "is_still_dead", is_still_dead)
    maintenance = Maintenance(store.database, store.clock, store.rng, NAMESPACE, 0)
    assert asyncio.run(maintenance.recover_dead(living.id))

    assert store.row(run_id)["state"] == "pending"
    assert {row["worker"] for row in store.system.table("runs") if row["id"] != run_id} == {living.id}


def test_recovery_leaves_what_the_dead_had_completed(store: Store) -> None:
    """I3, I5: a completed run is final, whoever died later."""
    succeeded, canceled = store.start(), store.start()
    dead = store.worker()
    row, _ = store.claim(dead).runs
    assert store.report(row, dead, Succeeded("1"))
    store.write(cancel_run, NAMESPACE, canceled)

    assert store.lose(dead) == 0

    assert store.status(succeeded) == Completed(Success(1))
    assert store.status(canceled) == Completed(Canceled())


def test_a_death_past_the_deadline_ends_the_run(store: Store) -> None:
    run_id = store.start(deadline_ms=100, max_failures=9)
    dead = store.worker()
    store.claim_one(dead)
    store.clock.advance(200)

    store.lose(dead)

    assert store.row(run_id)["state"] == "failed"
    assert store.row(run_id)["error_type"] == "WorkerLost"


def test_a_worker_without_runs_only_loses_its_row(store: Store) -> None:
    dead = store.worker()

    assert store.lose(dead) == 0

    assert store.read(list_workers, NAMESPACE) == []


def test_a_recovery_that_is_rolled_back_is_still_due(store: Store) -> None:
    """I1, I6: the worker's row goes in the transaction that settles its runs, so that nobody forgets them."""
    run_id = store.start()
    dead = store.worker()
    store.claim_one(dead)
    with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
        assert transaction.run(recover_worker, dead.id, store.rng) == (1, True, True)
        raise ZeroDivisionError

    assert store.row(run_id)["state"] == "running"
    assert store.read(list_owners, NAMESPACE) == {dead.id}
    assert store.lose(dead) == 1


def test_owners_are_found_even_without_a_row(store: Store) -> None:
    """I1: a run whose owner has no row any more is asked after as well, and so is a callback."""
    executing, called, idle = store.worker(), store.worker(mutations=("done",)), store.worker()
    store.start()
    store.claim_one(executing)
    store.write(cancel_run, NAMESPACE, store.start("charge", on_complete="done"))
    assert len(store.claim_callbacks(called)) == 1
    elsewhere = store.worker(namespace="elsewhere")

    assert store.read(list_owners, NAMESPACE) == {executing.id, called.id, idle.id}
    assert store.read(list_owners, "elsewhere") == {elsewhere.id}


def test_a_dead_workers_callback_is_called_again_later_and_counted(store: Store) -> None:
    """I4: a callback that may have killed its process is pending again, backs off, and is suspected."""
    run_id = store.start("charge", on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    dead = store.worker(mutations=("done",))
    (claimed,) = store.claim_callbacks(dead)
    assert (claimed["callback_tries"], claimed["callback_losses"]) == (1, 0)

    assert store.lose(dead) == 0

    row = store.row(run_id)
    assert (row["callback_state"], row["callback_worker"]) == ("pending", None)
    assert (row["callback_tries"], row["callback_losses"]) == (1, 1)
    assert f"WorkerLost: worker {dead.id}" in row["callback_error"]
    assert store.clock.now_us() < row["callback_due_at"] <= store.clock.now_us() + 375_000
    assert store.status(run_id) == Completed(Canceled())


def test_the_callback_of_a_run_that_ended_by_its_workers_death_is_suspected(store: Store) -> None:
    """I4, I8: what killed the worker may have been the run, and its callback has not been seen to do no harm."""
    run_id = store.start(on_complete="done", max_failures=0)
    dead = store.worker(mutations=("done",))
    store.claim_one(dead)
    store.lose(dead)
    row = store.row(run_id)
    assert (row["state"], row["callback_state"], row["callback_losses"]) == ("failed", "pending", 1)
    heir = store.worker(mutations=("done",))

    assert store.write(claim_callbacks, heir, 1, 0) == []
    assert [row["id"] for row in store.write(claim_callbacks, heir, 1, ANY_LOSSES)] == [run_id]


@pytest.mark.parametrize("deaths", [1, 5, 40])
def test_a_callback_that_kills_every_worker_backs_off_ever_longer(store: Store, deaths: int) -> None:
    """I4: it is never given up, and does not take the fleet down: at most one minute and a half apart."""
    run_id = store.start("charge", on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    for _ in range(deaths):
        store.clock.advance(90_000)
        worker = store.worker(mutations=("done",))
        assert len(store.claim_callbacks(worker)) == 1
        store.lose(worker)

    row = store.row(run_id)
    assert (row["callback_tries"], row["callback_losses"]) == (deaths, deaths)
    nominal_us = min(60_000_000, 250_000 * 2 ** (deaths - 1))
    assert 0.5 * nominal_us <= row["callback_due_at"] - store.clock.now_us() <= 1.5 * nominal_us


def test_a_callback_that_has_cost_workers_is_claimed_only_by_who_may(store: Store) -> None:
    """Suspects among callbacks are called apart from other suspects."""
    store.write(cancel_run, NAMESPACE, store.start("charge", on_complete="done"))
    dead = store.worker(mutations=("done",))
    store.claim_callbacks(dead)
    store.lose(dead)
    store.clock.advance(1000)
    worker = store.worker(mutations=("done",))

    assert store.claim_callbacks(worker, max_losses=0) == []
    assert store.next_due(worker, max_losses=0).callbacks_us is None
    (claimed,) = store.claim_callbacks(worker, max_losses=1)
    assert (claimed["callback_tries"], claimed["callback_losses"]) == (2, 1)


@pytest.mark.parametrize("end", ["done", "raised"])
def test_a_callback_that_comes_to_its_end_is_suspected_no_more(store: Store, end: str) -> None:
    run_id = store.start("charge", on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    dead = store.worker(mutations=("done",))
    store.claim_callbacks(dead)
    store.lose(dead)
    store.clock.advance(1000)
    worker = store.worker(mutations=("done",))
    (claimed,) = store.claim_callbacks(worker)

    if end == "done":
        assert store.write(finish_callback, run_id, worker.id, claimed["callback_tries"])
    else:
        assert store.write(postpone_callback, run_id, worker.id, claimed["callback_tries"], 1000, "E: e")

    assert store.row(run_id)["callback_losses"] == 0


def test_a_worker_that_signs_off_leaves_nothing_behind(store: Store) -> None:
    """I1: what it could not report is settled as if it had died, and its row is gone."""
    run_id = store.start()
    worker = store.worker()
    store.claim_one(worker)

    store.lose(worker)

    assert store.read(list_owners, NAMESPACE) == set()
    assert store.status(run_id) == InProgress()
    assert store.row(run_id)["state"] == "pending"


def test_a_worker_that_shows_life_at_the_last_look_keeps_its_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the turn to write it may have renewed: it is looked at again in the transaction."""
    worker = store.worker()
    store.start()
    row = store.claim_one(worker)
    looks = []

    async def dead(_workers: object) -> list[str]:
        return [worker.id]

    def is_still_dead(looked_at: str) -> Op[bool]:
        looks.append(looked_at)
        yield from ()
        return False

    monkeypatch.setattr(store.database.leases, "dead", dead)
    monkeypatch.setattr(store.database.leases, "is_still_dead", is_still_dead)
    maintenance = Maintenance(store.database, store.clock, store.rng, NAMESPACE, 0)

    assert asyncio.run(maintenance.recover_dead("somebody else"))

    assert set(looks) == {worker.id}
    assert store.row(row["id"])["state"] == "running"
    assert [one["id"] for one in store.system.table("workers")] == [worker.id]


def test_whoever_is_alone_looks_for_deaths_less_often(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle worker costs next to nothing. Whoever comes is seen within a second, and from then on watched closely."""

    async def dead(_workers: object) -> list[str]:
        return []

    monkeypatch.setattr(store.database.leases, "dead", dead)
    maintenance = Maintenance(store.database, store.clock, store.rng, NAMESPACE, 0)
    looks_s = []
    for _ in range(2):
        worker = store.worker()
        asyncio.run(maintenance.recover_dead(worker.id))
        looks_s.append(maintenance.look_again_s)

    alone_s, beside_others_s = looks_s
    assert beside_others_s < alone_s <= 1


def test_a_damaged_row_fails_for_good_and_its_neighbours_are_recovered(store: Store) -> None:
    """I1: what cannot be read keeps nobody from being settled."""
    worker = store.worker(mutations=("done",))
    run_ids = [store.start(on_complete="done") for _ in range(3)]
    store.claim(worker, 3)
    options = store.row(run_ids[1])["options"]
    store.system.overwrite(run_ids[1], options="{")

    try:
        settled = store.lose(worker)
    except ValueError as error:
        pytest.fail(f"I1: a row that cannot be read keeps its neighbours from being recovered: {error}")

    assert settled == 3
    assert [store.row(run_id)["state"] for run_id in run_ids] == ["pending", "failed", "pending"]
    damaged = store.row(run_ids[1])
    assert (damaged["error_type"], damaged["callback_state"]) == ("JSONDecodeError", "pending")
    assert "options cannot be read" in damaged["error"]
    store.system.overwrite(run_ids[1], options=options)  # for the check of the invariants, which reads them
