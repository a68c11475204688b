"""Starting runs: what is stored, once, and never without its transaction."""

import contextlib
import json
from typing import ClassVar

import pytest

from action_retrier._ops.control import cancel_run, clean_up_run, load_status
from action_retrier._ops.starts import Start, start_runs
from action_retrier.errors import IdempotencyConflict, RunNotFound

from ..stores import NAMESPACE, Store


def test_a_started_run_is_pending_and_due_now(store: Store) -> None:
    """I1: what has been committed is there, with everything it was started with."""
    run_id = store.start("charge", args='{"order": 7}', context='"ctx"', on_complete="done", queue="mail", priority=3)

    row = store.row(run_id)
    assert (row["state"], row["attempt"], row["failures"], row["worker"]) == ("pending", 0, 0, None)
    assert (row["action"], row["queue"], row["priority"], row["on_complete"]) == ("charge", "mail", 3, "done")
    assert (json.loads(row["args"]), json.loads(row["context"])) == ({"order": 7}, "ctx")
    assert row["created_at"] == row["due_at"] == store.clock.now_us()
    assert row["callback_state"] == "none"


def test_the_policy_is_frozen_into_the_run(store: Store) -> None:
    """What a run was started with is what its retries follow, whatever is deployed later."""
    run_id = store.start(max_failures=9, base=3, initial_backoff_ms=125, jitter=0.25, attempt_timeout_ms=1.5)

    options = json.loads(store.row(run_id)["options"])
    assert options["max_failures"] == 9
    assert (options["base"], options["initial_backoff_ms"], options["jitter"]) == (3, 125, 0.25)
    assert options["attempt_timeout_ms"] == 1.5


def test_a_delay_counts_from_the_databases_now(store: Store) -> None:
    """I7: a run started after a delay is due then."""
    run_id = store.start(delay_ms=1500.5)

    assert store.row(run_id)["due_at"] == store.clock.now_us() + 1_500_500


@pytest.mark.parametrize(
    ("offset_us", "expected_us"), [(3_600_000_000, 3_600_000_000), (0, 0), (-1, 0), (-(10**12), 0)]
)
def test_an_instant_in_the_past_means_now(store: Store, offset_us: int, expected_us: int) -> None:
    """I7: due at the instant that was asked for, and never before the start."""
    now = store.clock.now_us()

    run_id = store.start(at_us=now + offset_us)

    assert store.row(run_id)["due_at"] == now + expected_us


def test_the_deadline_counts_from_the_first_due_time(store: Store) -> None:
    """A run for later has its whole deadline then."""
    run_id = store.start(delay_ms=10_000, deadline_ms=500)

    assert store.row(run_id)["deadline_at"] == store.clock.now_us() + 10_500_000


def test_a_repeated_start_inserts_once(store: Store) -> None:
    """I1, I2: an unknown commit result is resolved by starting the same id again."""
    start = store.starting()
    assert store.write(start_runs, NAMESPACE, [start]) == [start.id]

    assert store.write(start_runs, NAMESPACE, [start]) == [start.id]
    assert len(store.system.table("runs")) == 1


def test_a_repeated_start_leaves_a_run_that_went_on_as_it_is(store: Store) -> None:
    """I3: the repetition of a start does not start anything again."""
    start = store.starting()
    store.write(start_runs, NAMESPACE, [start])
    store.claim_one(store.worker())
    before = store.row(start.id)

    store.write(start_runs, NAMESPACE, [start])

    assert store.row(start.id) == before


def test_many_runs_come_back_in_the_order_of_their_calls(store: Store) -> None:
    """Ids are returned in the order of the calls, whatever order they were inserted in."""
    starts = [store.starting(key=key) for key in ("b", None, "a", "c", None)]  # type: ignore[arg-type]

    assert store.write(start_runs, NAMESPACE, starts) == [start.id for start in starts]
    assert len(store.system.table("runs")) == 5


def test_starting_no_runs_is_no_error(store: Store) -> None:
    assert store.write(start_runs, NAMESPACE, []) == []


def test_the_same_key_gives_the_first_runs_id(store: Store) -> None:
    """One run for one key, however its arguments are spelled."""
    first = store.start(key="k", args='{"a": 1, "b": 2}')

    assert store.start(key="k", args='{"b":2,"a":1}') == first
    assert len(store.system.table("runs")) == 1


@pytest.mark.parametrize("end", ["running", "canceled", "completed"])
def test_a_key_belongs_to_its_run_whatever_its_state(store: Store, end: str) -> None:
    """A key is free again only once its run has been cleaned up."""
    first = store.start(key="k")
    if end == "running":
        store.claim_one(store.worker())
    else:
        store.write(cancel_run, NAMESPACE, first)

    assert store.start(key="k") == first
    if end == "completed":
        store.write(clean_up_run, NAMESPACE, first, discard_callback=False)
        assert store.start(key="k") != first


def test_a_key_with_other_arguments_is_a_conflict_that_names_the_run(store: Store) -> None:
    """Nothing is stored, and the error says what the key belongs to."""
    first = store.start(key="k", args='{"a": 1}')

    with pytest.raises(IdempotencyConflict) as caught:
        store.start(key="k", args='{"a": 2}')

    assert (caught.value.run_id, caught.value.idempotency_key, caught.value.action) == (first, "k", "charge")
    assert [row["id"] for row in store.system.table("runs")] == [first]


def test_a_conflict_undoes_the_whole_call(store: Store) -> None:
    """I6: all runs of one call or none of them."""
    store.start(key="k", args='{"a": 1}')
    starts = [store.starting(), store.starting(key="k", args='{"a": 2}'), store.starting(key="other")]

    with pytest.raises(IdempotencyConflict):
        store.write(start_runs, NAMESPACE, starts)

    assert len(store.system.table("runs")) == 1


def test_a_conflict_leaves_the_rest_of_the_callers_transaction(store: Store) -> None:
    """A caller that catches the conflict goes on; only what the call inserted is gone."""
    store.start(key="k", args='{"a": 1}')
    kept = store.starting()

    with store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [kept])
        with pytest.raises(IdempotencyConflict):
            transaction.run(start_runs, NAMESPACE, [store.starting(), store.starting(key="k")])

    assert {row["id"] for row in store.system.table("runs") if row["idempotency_key"] is None} == {kept.id}


def test_two_calls_with_one_key_start_one_run(store: Store) -> None:
    """A key that stands twice in one call names the same run twice."""
    one, two = store.starting(key="k"), store.starting(key="k")

    first, second = store.write(start_runs, NAMESPACE, [one, two])

    assert first == second
    assert [row["id"] for row in store.system.table("runs")] == [first]


def test_two_calls_with_one_key_and_other_arguments_start_nothing(store: Store) -> None:
    """I6: a conflict inside one call is a conflict."""
    with pytest.raises(IdempotencyConflict):
        store.write(start_runs, NAMESPACE, [store.starting(key="k"), store.starting(key="k", args='{"a": 1}')])

    assert store.system.table("runs") == []


def test_a_key_is_the_actions_own(store: Store) -> None:
    """Two actions may use the same key for different things."""
    assert store.start("charge", key="k") != store.start("refund", key="k", args='{"a": 1}')


def test_a_key_is_the_namespaces_own(store: Store) -> None:
    """Namespaces see nothing of each other, keys included."""
    first = store.start(key="k")

    (second,) = store.write(start_runs, "elsewhere", [store.starting(key="k", args='{"a": 1}')])

    assert second != first


def test_namespaces_see_nothing_of_each_others_runs(store: Store) -> None:
    run_id = store.start()

    with pytest.raises(RunNotFound):
        store.status(run_id, namespace="elsewhere")
    with pytest.raises(RunNotFound):
        store.write(cancel_run, "elsewhere", run_id)
    assert store.claim_ids(store.worker(namespace="elsewhere")) == []


def test_a_start_that_is_rolled_back_does_not_exist(store: Store) -> None:
    """I6: nothing of a rolled back transaction is visible or executed."""
    start = store.starting(key="k")
    with contextlib.suppress(_Rollback), store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [start])
        assert transaction.run(load_status, NAMESPACE, start.id)["state"] == "pending"
        raise _Rollback

    with pytest.raises(RunNotFound):
        store.status(start.id)
    assert store.claim_ids(store.worker()) == []
    assert store.start(key="k", args='{"other": true}') != start.id


@pytest.mark.parametrize(
    "text",
    ["", "x" * 255, "naïve 🎉 \"quoted\" 'single' \\ {} $.id", "a\nb\tc\x7f", "'; DROP TABLE action_retrier_runs; --"],
)
def test_texts_are_stored_as_they_are(store: Store, text: str) -> None:
    """Keys, queues, names and payloads are data: no statement is built from them."""
    run_id = store.start(f"a{text}", key=f"k{text}", queue=f"q{text}", args=json.dumps({"x": text}), context=text)

    row = store.row(run_id)
    assert (row["action"], row["idempotency_key"], row["queue"]) == (f"a{text}", f"k{text}", f"q{text}")
    assert (json.loads(row["args"]), row["context"]) == ({"x": text}, text)
    assert store.start(f"a{text}", key=f"k{text}", args=json.dumps({"x": text})) == run_id
    (claimed,) = store.claim(store.worker(f"a{text}", queues=(f"q{text}",))).runs
    assert claimed["id"] == run_id


def test_starting_many_known_keys_takes_time_by_the_run(store: Store) -> None:
    """Repeating a large call is the very use of keys: it must not compare every run with every other."""
    first = [store.starting(key=f"k{number}") for number in range(300)]
    store.write(start_runs, NAMESPACE, first)
    again = [_Counted(*store.starting(key=f"k{number}")) for number in range(300)]

    assert store.write(start_runs, NAMESPACE, again) == [start.id for start in first]
    assert _Counted.comparisons <= 10 * len(again)


def test_a_conflict_under_an_older_name_leaves_nothing_behind(store: Store) -> None:
    """Nor of those beside it that have no key: nothing commits itself before all is known."""
    store.start("old", key="k", args='{"a": 1}')
    renamed = store.starting("new", key="k")._replace(aliases=("old",))

    with pytest.raises(IdempotencyConflict):
        store.write(start_runs, NAMESPACE, [store.starting(), renamed], stands_alone=True)

    assert len(store.system.table("runs")) == 1


class _Counted(Start):
    """A start that counts comparisons."""

    comparisons: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        _Counted.comparisons += 1
        return self is other

    __hash__ = Start.__hash__


class _Rollback(Exception):
    """Raised by a test to leave a transaction."""
