"""Claims: what a worker may take, in which order, and that nobody else takes it too."""

import contextlib
import json
from typing import Any
from urllib.parse import quote

import pytest

from action_retrier._clock import SystemClock
from action_retrier._lifecycle import NotBegun, Raised, Succeeded, WorkerStopped
from action_retrier._ops.claims import ANY_LOSSES, NextDue, claim_runs, next_due
from action_retrier._ops.control import cancel_run
from action_retrier._ops.starts import start_runs
from action_retrier._ops.workers import list_workers, recover_worker
from action_retrier.drivers import open_database

from ..stores import NAMESPACE, Store, System


def test_a_claim_begins_the_next_attempt(store: Store) -> None:
    """I2: the attempt is counted at the claim, and its number is the fencing token."""
    run_id = store.start(args='{"order": 7}', context="7", on_complete="done", deadline_ms=9)
    worker = store.worker(mutations=("done",))

    row = store.claim_one(worker)

    assert (row["id"], row["attempt"], row["failures"], row["losses"]) == (run_id, 1, 0, 0)
    assert (row["action"], row["args"], row["context"], row["on_complete"]) == ("charge", '{"order": 7}', "7", "done")
    assert row["deadline_in"] == 9000
    stored = store.row(run_id)
    assert (stored["state"], stored["attempt"], stored["worker"]) == ("running", 1, worker.id)
    assert stored["started_at"] == stored["first_started_at"] == store.clock.now_us()


def test_a_claimed_run_is_claimed_by_nobody_else(store: Store) -> None:
    """I2: two workers never run one attempt."""
    store.start()
    one, other = store.worker(), store.worker()

    assert len(store.claim_ids(one)) == 1
    assert store.claim_ids(other) == []
    assert store.claim_ids(one) == []


def test_no_attempt_starts_before_it_is_due(store: Store) -> None:
    """I7: a microsecond too early is too early; at the very instant it is due."""
    run_id = store.start(delay_ms=1000)
    worker = store.worker()

    store.clock.advance(999.999)
    assert store.claim_ids(worker) == []
    assert store.next_due(worker) == NextDue(1, None)

    store.clock.advance(0.001)
    assert store.next_due(worker) == NextDue(0, None)
    assert store.claim_ids(worker) == [run_id]


class WrongClock(SystemClock):
    """The clock of a machine whose date is wrong."""

    def __init__(self, days: int) -> None:
        self._off_us = days * 86_400_000_000

    def now_us(self) -> int:
        return super().now_us() + self._off_us


@pytest.mark.postgres("on SQLite there is one machine, and its clock counts")
@pytest.mark.parametrize(("starter_days", "worker_days"), [(0, 1), (0, -1), (1, 0), (-1, 0)])
def test_the_servers_clock_decides_what_is_due_however_wrong_others_are(
    system: System, starter_days: int, worker_days: int
) -> None:
    """I7: neither who starts a run nor who claims it is asked for the time."""
    clocks: list[Any] = [WrongClock(starter_days), WrongClock(worker_days)]
    with contextlib.ExitStack() as opened:
        starter, claimer = (opened.enter_context(contextlib.closing(Store(system, "sync", one))) for one in clocks)
        due, _ = starter.start(), starter.start(delay_ms=3_600_000)

        assert claimer.claim_ids(claimer.worker()) == [due]


def test_no_attempt_begins_at_or_after_the_deadline(store: Store) -> None:
    """Past the deadline no new attempt begins: the run is left to `expire_runs`."""
    store.start(deadline_ms=100)
    in_time = store.start(deadline_ms=100.001)
    worker = store.worker()
    store.clock.advance(100)

    assert store.claim_ids(worker) == [in_time]


def test_larger_priority_first_then_due_time_then_age(store: Store) -> None:
    """The order of claims, also across lanes: priority, due time, id."""
    worker = store.worker("charge", "refund", mutations=("done",))
    late = store.start("charge", delay_ms=3)
    soon_2 = store.start("refund", delay_ms=2)
    soon_3 = store.start("charge", delay_ms=2, on_complete="done", queue="other")
    low = store.start("charge", delay_ms=1, priority=-1)
    high = store.start("refund", delay_ms=4, priority=5)
    store.clock.advance(10)

    assert store.claim_ids(worker) == [high, soon_2, soon_3, late, low]


def test_small_claims_take_the_same_order_as_a_large_one(store: Store) -> None:
    """What a claim leaves is never more urgent than what it took."""
    worker = store.worker("charge", "refund")
    ids = {}
    for number in range(12):
        priority, delay = number % 3, number // 3
        run_id = store.start(("charge", "refund")[number % 2], priority=priority, delay_ms=delay)
        ids[run_id] = (-priority, delay, run_id)
    store.clock.advance(100)

    claimed = [run_id for _ in range(6) for run_id in store.claim_ids(worker, 2)]

    assert claimed == sorted(ids, key=ids.__getitem__)


def test_a_claim_takes_at_most_what_was_asked_for(store: Store) -> None:
    """Only as many as it can start now: the rest is for others."""
    for number in range(4):
        store.start(queue=f"q{number % 2}")
    worker = store.worker()

    assert len(store.claim_ids(worker, 3)) == 3
    assert len(store.claim_ids(worker, 3)) == 1


JOINS = ("enable_hashjoin", "enable_mergejoin", "enable_nestloop")


@pytest.mark.postgres("there is one planner that may choose")
@pytest.mark.parametrize("kept", JOINS)
def test_a_claim_takes_at_most_what_was_asked_for_whatever_the_plan(store: Store, kept: str) -> None:
    """A planner that runs the choice again for each row would ignore its LIMIT."""
    for number in range(12):
        store.start(queue=f"q{number % 3}")
    options = " ".join(f"-c {name}={'on' if name == kept else 'off'}" for name in (*JOINS, "enable_seqscan"))
    database = open_database(f"{store.system.url}&options={quote(options)}", clock=store.clock, auto_migrate=True)
    worker = store.worker()

    taken = [len(database.write_sync(lambda: claim_runs(worker, 5, ANY_LOSSES)).runs) for _ in range(3)]
    database.close()

    assert taken == [5, 5, 2]


@pytest.mark.parametrize(
    ("actions", "mutations", "takes"),
    [
        (("charge",), ("done",), True),
        (("charge", "refund"), ("done", "other"), True),
        (("refund",), ("done",), False),
        (("charge",), (), False),
        (("charge",), ("other",), False),
        (("charg", "charges", "CHARGE", "%"), ("done",), False),
    ],
)
def test_a_worker_takes_only_what_it_knows(
    store: Store, actions: tuple[str, ...], mutations: tuple[str, ...], *, takes: bool
) -> None:
    """A worker never takes a run whose action, or whose callback, it does not know."""
    run_id = store.start("charge", on_complete="done")
    worker = store.worker(*actions, mutations=mutations)

    assert store.next_due(worker) == NextDue(0 if takes else None, None)
    assert store.claim_ids(worker) == ([run_id] if takes else [])


def test_what_nobody_knows_keeps_nobody_awake(store: Store) -> None:
    """A run of an unknown action, or on another queue, is not due for a worker."""
    store.start("unknown")
    store.start("charge", on_complete="unknown")
    store.start("charge", queue="other")

    assert store.next_due(store.worker("charge", queues=("default",))) == NextDue(None, None)


def test_a_worker_without_callbacks_takes_runs_without(store: Store) -> None:
    run_id = store.start("charge")
    store.start("charge", on_complete="done")

    assert store.claim_ids(store.worker("charge")) == [run_id]


@pytest.mark.parametrize(
    ("queues", "taken"),
    [(None, {"a", "b", "default"}), (("a",), {"a"}), (("a", "b"), {"a", "b"}), (("c",), set())],
)
def test_a_worker_takes_only_from_its_queues(store: Store, queues: tuple[str, ...] | None, taken: set[str]) -> None:
    """`queues=None` means all, those that nobody has heard of included."""
    ids = {store.start(queue=name): name for name in ("a", "b", "default")}
    worker = store.worker(queues=queues)

    assert {ids[run_id] for run_id in store.claim_ids(worker)} == taken


def test_a_worker_whose_row_is_gone_claims_nothing_and_is_told(store: Store) -> None:
    """I1: who has been taken for dead must not own runs that nobody would recover."""
    run_id = store.start()
    worker = store.worker()
    store.write(recover_worker, worker.id, store.rng)

    claimed = store.claim(worker)

    assert (claimed.runs, claimed.suspects, claimed.registered) == ([], [], False)
    assert store.row(run_id)["state"] == "pending"
    assert store.row(run_id)["attempt"] == 0


def test_a_worker_whose_row_is_there_is_told_so_when_nothing_is_due(store: Store) -> None:
    claimed = store.claim(store.worker())

    assert claimed.registered
    assert claimed.runs == []


def test_workers_are_listed_by_namespace(store: Store) -> None:
    """I1: whoever looks after the dead sees every incarnation of its namespace."""
    workers = [store.worker("charge", mutations=("done",), queues=("a",)), store.worker("refund")]
    elsewhere = store.worker(namespace="elsewhere")

    rows = store.read(list_workers, NAMESPACE)

    assert {row["id"] for row in rows} == {worker.id for worker in workers}
    first = next(row for row in rows if row["id"] == workers[0].id)
    assert (first["actions"], first["mutations"], first["queues"]) == ('["charge"]', '["done"]', '["a"]')
    assert (first["host"], first["pid"], first["started_at"]) == ("a host", 4711, store.clock.now_us())
    assert [row["id"] for row in store.read(list_workers, "elsewhere")] == [elsewhere.id]


def test_what_has_not_been_committed_is_not_claimed(store: Store) -> None:
    """I6: no action starts before the commit of the transaction that starts it."""
    start = store.starting()
    other = store.system.open(store.clock)
    worker = store.worker()
    with store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [start])
        rows = other.read_sync(lambda: list_workers(NAMESPACE))
        assert [row["id"] for row in rows] == [worker.id]
        assert store.system.table("runs") == []

    assert store.claim_ids(worker) == [start.id]


def test_a_run_given_back_before_it_began_costs_nothing(store: Store) -> None:
    """I8: only attempts claimed and not yet begun are given back free; they keep their place."""
    run_id = store.start(max_failures=0)
    later = store.start(delay_ms=1)
    worker = store.worker()
    row = store.claim_one(worker)
    store.clock.advance(5)

    assert store.report(row, worker, NotBegun())

    stored = store.row(run_id)
    assert (stored["state"], stored["failures"], stored["due_at"]) == ("pending", 0, store.clock.now_us() - 5000)
    assert store.attempts(run_id) == []
    claimed = store.claim(worker).runs
    assert [(row["id"], row["attempt"]) for row in claimed] == [(run_id, 2), (later, 1)]


def test_a_backoff_counts_from_the_end_of_the_failed_attempt(store: Store) -> None:
    """I7: the delay begins when the attempt has ended, not when it began."""
    run_id = store.start(initial_backoff_ms=250, base=2)
    worker = store.worker()
    for retry, backoff_ms in ((1, 250), (2, 500), (3, 1000)):
        row = store.claim_one(worker)
        assert row["attempt"] == retry
        store.clock.advance(10_000)
        assert store.report(row, worker, Raised("ValueError", "no"))
        assert store.row(run_id)["due_at"] == store.clock.now_us() + backoff_ms * 1000
        assert store.next_due(worker) == NextDue(backoff_ms * 1000, None)
        store.clock.advance(backoff_ms)


# Suspects.


def suspects(store: Store, count: int, losses: int = 1, **options: object) -> list[str]:
    """Start runs and have so many workers die with them."""
    runs = [store.start(initial_backoff_ms=0, max_failures=9, **options) for _ in range(count)]
    for _ in range(losses):
        dying = store.worker()
        while store.claim_ids(dying):
            pass
        assert store.lose(dying) >= count
    return runs


def test_a_suspect_is_claimed_apart_and_one_at_a_time(store: Store) -> None:
    """I8: a run that kills its process costs the innocent ones one attempt in all."""
    lost = suspects(store, 3)
    fresh = store.start()
    worker = store.worker()

    claimed = store.claim(worker, 10)

    assert [row["id"] for row in claimed.suspects] == lost[:1]
    assert [row["id"] for row in claimed.runs] == [fresh]
    assert claimed.suspects[0]["losses"] == 1
    assert claimed.suspects[0]["attempt"] == 2


def test_a_suspect_counts_among_what_was_asked_for(store: Store) -> None:
    suspects(store, 2)
    store.start()

    claimed = store.claim(store.worker(), 1)

    assert (len(claimed.suspects), len(claimed.runs)) == (1, 0)


def test_a_worker_that_may_take_no_suspect_takes_none(store: Store) -> None:
    """`max_losses=0`: one is being watched already."""
    suspects(store, 2)
    fresh = store.start()
    worker = store.worker()

    claimed = store.claim(worker, 10, max_losses=0)

    assert (claimed.suspects, [row["id"] for row in claimed.runs]) == ([], [fresh])
    assert store.next_due(worker, max_losses=0) == NextDue(None, None)
    assert store.next_due(worker, max_losses=1) == NextDue(0, None)


def test_runs_that_were_lost_more_often_are_left_to_others(store: Store) -> None:
    """A suspect may be claimed beside another only while it has been lost as seldom as allowed."""
    (twice,) = suspects(store, 1, losses=2)
    worker = store.worker()
    assert store.claim_ids(worker, max_losses=1) == []
    assert store.next_due(worker, max_losses=1) == NextDue(None, None)

    (row,) = store.claim(worker, max_losses=2).suspects
    assert (row["id"], row["losses"], row["failures"]) == (twice, 2, 2)


def test_suspects_obey_what_all_runs_obey(store: Store) -> None:
    """I7: names, queues, due times and deadlines count for suspects as well."""
    (due,) = suspects(store, 1, queue="a", deadline_ms=1000)

    assert store.claim_ids(store.worker("refund")) == []
    assert store.claim_ids(store.worker(queues=("b",))) == []
    assert store.claim_ids(store.worker(namespace="elsewhere")) == []
    unregistered = store.worker(register=False)
    assert store.claim_ids(unregistered) == []
    assert store.claim_ids(store.worker(queues=("a",))) == [due]


def test_a_suspect_past_its_deadline_is_not_claimed(store: Store) -> None:
    suspects(store, 1, deadline_ms=1000)
    store.clock.advance(1000)

    assert store.claim_ids(store.worker()) == []


def test_suspects_come_by_priority_and_due_time_too(store: Store) -> None:
    worker = store.worker()
    low, high = store.start(initial_backoff_ms=0), store.start(initial_backoff_ms=0, priority=1)
    doomed = store.worker()
    store.claim(doomed)
    store.lose(doomed)

    assert [store.claim_ids(worker), store.claim_ids(worker)] == [[high], [low]]


@pytest.mark.parametrize("outcome", [Succeeded("null"), Raised("E", "e"), WorkerStopped()])
def test_an_attempt_that_ends_by_itself_ends_the_suspicion(store: Store, outcome: object) -> None:
    """Losses are counted in a row: an attempt that came to its end has not killed anybody."""
    (run_id,) = suspects(store, 1)
    worker = store.worker()
    (row,) = store.claim(worker).suspects

    assert store.report(row, worker, outcome)  # type: ignore[arg-type]

    assert store.row(run_id)["losses"] == 0


def test_a_suspect_given_back_unbegun_is_still_one(store: Store) -> None:
    (run_id,) = suspects(store, 1)
    worker = store.worker()
    (row,) = store.claim(worker).suspects

    store.report(row, worker, NotBegun())

    assert store.row(run_id)["losses"] == 1
    assert [row["id"] for row in store.claim(worker).suspects] == [run_id]


def test_a_claim_that_is_rolled_back_has_not_happened(store: Store) -> None:
    """I6: the attempt's number goes with the claim."""
    run_id = store.start()
    worker = store.worker()
    with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
        assert transaction.run(claim_runs, worker, 5, ANY_LOSSES).runs[0]["attempt"] == 1
        raise ZeroDivisionError

    assert store.row(run_id)["attempt"] == 0
    assert store.claim_one(worker)["attempt"] == 1


@pytest.mark.parametrize("namespaces", [("default", "a", "b"), ("default", "x", "y")])
def test_lanes_of_other_namespaces_are_walked_over(store: Store, namespaces: tuple[str, ...]) -> None:
    """The walk from lane to lane misses none, wherever it has to turn."""
    expected = []
    for namespace in namespaces:
        for queue in ("p", "q"):
            for action in ("charge", "refund"):
                for on_complete in ("", "done"):
                    for priority in (-1, 0, 1):
                        start = store.starting(action, queue=queue, on_complete=on_complete, priority=priority)
                        store.write(start_runs, namespace, [start])
                        if namespace == NAMESPACE:
                            expected.append(start.id)
    worker = store.worker("charge", "refund", mutations=("done",))

    assert sorted(store.claim_ids(worker, 1000)) == sorted(expected)


def test_next_due_tells_the_nearest_of_all_lanes(store: Store) -> None:
    """Negative is overdue, zero is now; a deadline is something to do as well."""
    worker = store.worker("charge", "refund")
    assert store.next_due(worker) == NextDue(None, None)
    store.start("charge", delay_ms=9, priority=7)
    assert store.next_due(worker) == NextDue(9000, None)
    store.start("refund", delay_ms=5, queue="other")
    assert store.next_due(worker) == NextDue(5000, None)
    canceled = store.start("charge", delay_ms=1)
    assert store.next_due(worker) == NextDue(1000, None)
    store.write(cancel_run, NAMESPACE, canceled)
    assert store.next_due(worker) == NextDue(5000, None)
    store.start("unknown", delay_ms=100, deadline_ms=0.5, queue="elsewhere")
    store.clock.advance(5.25)
    assert store.next_due(worker) == NextDue(-250, None, 95_250)


def test_a_deadline_is_due_even_where_the_run_is_not(store: Store) -> None:
    """Somebody has to fail a run that nobody can run."""
    store.start("unknown", deadline_ms=3)

    assert store.next_due(store.worker("charge")) == NextDue(3000, None, 3000)


# Lanes that are known: a claim need not look everywhere.


def test_a_claim_in_known_lanes_takes_what_a_claim_everywhere_would(store: Store) -> None:
    worker = store.worker("charge", "mail")
    urgent, first, second = store.start("mail", priority=1), store.start(), store.start()
    lanes = store.next_due(worker).lanes

    claimed = store.write(claim_runs, worker, 10, ANY_LOSSES, lanes)

    assert [row["id"] for row in claimed.runs] == [urgent, first, second]


def test_a_claim_in_known_lanes_does_not_look_anywhere_else(store: Store) -> None:
    """What has come in a lane of its own since is found by the next look everywhere."""
    worker = store.worker("charge", "mail")
    known = store.start()
    lanes = store.next_due(worker).lanes
    store.start("mail")

    claimed = store.write(claim_runs, worker, 10, ANY_LOSSES, lanes)

    assert [row["id"] for row in claimed.runs] == [known]
    assert store.next_due(worker).work_us == 0


def test_a_claim_in_known_lanes_looks_at_nothing_that_fell_due_earlier(store: Store) -> None:
    """On PostgreSQL that is where rows lie which somebody's open transaction might still see."""
    worker = store.worker("charge")
    early = store.start()
    store.clock.advance(1000)
    late = store.start()
    (lane,) = json.loads(store.next_due(worker).lanes)
    since = json.dumps([lane | {"since": store.row(late)["due_at"]}])

    assert store.read(next_due, worker, ANY_LOSSES, since).work_us == 0
    claimed = store.write(claim_runs, worker, 10, ANY_LOSSES, since)

    assert [row["id"] for row in claimed.runs] == [late]
    assert store.read(next_due, worker, ANY_LOSSES, since).work_us is None
    assert store.next_due(worker).work_us == -1_000_000
    assert store.claim_ids(worker) == [early]
