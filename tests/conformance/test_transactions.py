"""Transactions of ours: what user code may do in them, and how neighbours share them."""

import contextlib
from typing import Any

import pytest

from action_retrier._ops.control import cancel_run, load_status
from action_retrier._ops.starts import start_runs
from action_retrier._statements import Op, Statement
from action_retrier.errors import IdempotencyConflict, RunNotFound
from action_retrier.results import Completed, InProgress

from ..stores import NAMESPACE, Store

UNKNOWN = "01890000-0000-7000-8000-000000000000"


class Bug(Exception):
    """Raised by a test where user code, or ours, would fail."""


def test_a_transaction_commits_on_exit_and_not_before(store: Store) -> None:
    """I6: the user's writes and ours become visible together."""
    start = store.starting()
    with store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [start])
        transaction.note("with it")
        assert (store.system.table("runs"), store.system.notes()) == ([], [])
        assert transaction.is_open

    assert not transaction.is_open
    assert (store.status(start.id), store.system.notes()) == (InProgress(), ["with it"])


@pytest.mark.parametrize("error", [Bug, KeyboardInterrupt, GeneratorExit])
def test_a_transaction_rolls_back_on_error(store: Store, error: type[BaseException]) -> None:
    """I6: nothing of it is visible, and the error goes on."""
    start = store.starting()
    with pytest.raises(error), store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [start])
        transaction.note("gone")
        raise error

    assert not transaction.is_open
    assert (store.system.table("runs"), store.system.notes()) == ([], [])
    assert store.status(store.start()) == InProgress()


def test_an_operation_sees_what_its_transaction_has_written(store: Store) -> None:
    start = store.starting()
    with store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [start])
        assert transaction.run(cancel_run, NAMESPACE, start.id) is True
        assert transaction.run(cancel_run, NAMESPACE, start.id) is False
        assert transaction.run(load_status, NAMESPACE, start.id)["state"] == "canceled"


def test_an_operation_that_raises_leaves_nothing_behind(store: Store) -> None:
    """The transaction goes on without it."""

    def half(start: Any) -> Op[None]:
        yield from start_runs(NAMESPACE, [start])
        yield Statement("select_status", {"namespace": NAMESPACE, "id": start.id})
        raise Bug

    kept, gone = store.starting(), store.starting()
    with store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [kept])
        with pytest.raises(Bug):
            transaction.run(half, gone)

    assert [row["id"] for row in store.system.table("runs")] == [kept.id]


def test_a_savepoint_undoes_what_happens_inside_and_nothing_else(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.note("before")
        with contextlib.suppress(Bug), transaction.savepoint():
            transaction.note("undone")
            with transaction.savepoint():
                transaction.note("undone with it")
            with contextlib.suppress(Bug), transaction.savepoint():
                transaction.note("undone first")
                raise Bug
            raise Bug
        with transaction.savepoint():
            transaction.note("inside")
        transaction.note("after")

    assert store.system.notes() == ["before", "inside", "after"]


def test_operations_run_while_user_code_holds_the_connection(store: Store) -> None:
    """A call of ours that user code makes may use savepoints, and user code still may not end anything."""
    start = store.starting()
    with store.transaction() as transaction, transaction.user_code():
        transaction.note("mine")
        transaction.run(start_runs, NAMESPACE, [start])
        with pytest.raises(RunNotFound):
            transaction.run(cancel_run, NAMESPACE, UNKNOWN)

    assert (store.status(start.id), store.system.notes()) == (InProgress(), ["mine"])


def test_what_user_code_raises_goes_through_the_guard_as_it_is(store: Store) -> None:
    with pytest.raises(Bug), store.transaction() as transaction, transaction.user_code():
        raise Bug


def test_a_savepoint_around_user_code_that_raises_undoes_what_came_before_it(store: Store) -> None:
    """I4: an outcome and its callback, one of several in a transaction, go together."""
    start, kept = store.starting(), store.starting()
    with store.transaction() as transaction:
        with pytest.raises(Bug), transaction.savepoint():
            transaction.run(start_runs, NAMESPACE, [start])
            with transaction.user_code():
                transaction.note("undone")
                raise Bug
        transaction.run(start_runs, NAMESPACE, [kept])

    assert [row["id"] for row in store.system.table("runs")] == [kept.id]
    assert store.system.notes() == []


@pytest.mark.parametrize("way", ["commit", "rollback"])
@pytest.mark.parametrize("swallow", [True, False])
def test_user_code_cannot_end_the_transaction(store: Store, way: str, *, swallow: bool) -> None:
    """Committing or rolling back through the connection is an error, not a way out; nothing is committed."""
    with pytest.raises(RuntimeError, match=f"user code tried to {way.upper()}"), store.transaction() as transaction:
        with transaction.user_code():
            transaction.note("smuggled")
            with contextlib.suppress(Exception) if swallow else contextlib.nullcontext():
                getattr(transaction.connection, way)()
            transaction.note("and more")
        raise AssertionError("the guard raises on leaving")

    assert store.system.notes() == []


def test_the_guard_is_gone_with_the_user_code(store: Store) -> None:
    """The next transaction on the connection begins and ends as ever."""
    with pytest.raises(RuntimeError), store.transaction() as transaction, transaction.user_code():
        transaction.connection.commit()

    with store.transaction() as transaction, transaction.user_code():
        transaction.note("next")

    assert store.system.notes() == ["next"]


def test_an_abandoned_transaction_is_rolled_back_at_once(store: Store) -> None:
    """User code that does not return must not hold up the rest, and can do nothing with what it kept."""
    with pytest.raises(Bug), store.transaction() as transaction:
        connection = transaction.connection
        transaction.note("gone")
        transaction.abandon()
        assert not transaction.is_open
        run_id = store.start()
        assert store.status(run_id) == InProgress()
        with pytest.raises(Exception, match=r"not authorized|prohibited|closed"):
            store.system.write_note(connection, "too late")
        raise Bug

    assert store.system.notes() == []
    assert store.status(store.start()) == InProgress()


def test_leaving_an_abandoned_transaction_without_an_error_commits_nothing(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.note("gone")
        transaction.abandon()

    assert store.system.notes() == []


# Neighbours.


def test_neighbours_are_written_together_and_each_gets_its_own_result(store: Store) -> None:
    """Group commit: load makes batches."""
    starts = [store.starting() for _ in range(20)]

    results = store.write_together(*(lambda start=start: start_runs(NAMESPACE, [start]) for start in starts))

    assert results == [[start.id] for start in starts]
    assert len(store.system.table("runs")) == 20


def test_an_expected_error_undoes_its_own_operation_only(store: Store) -> None:
    """One operation of a group raises: it leaves nothing behind, and its neighbours commit."""
    store.start(key="k", args='{"a": 1}')
    before, after = store.starting(), store.starting()
    conflicting = [store.starting(), store.starting(key="k", args='{"a": 2}')]

    results = store.write_together(
        lambda: start_runs(NAMESPACE, [before]),
        lambda: start_runs(NAMESPACE, conflicting),
        lambda: cancel_run(NAMESPACE, UNKNOWN),
        lambda: start_runs(NAMESPACE, [after]),
    )

    assert (results[0], results[3]) == ([before.id], [after.id])
    assert isinstance(results[1], IdempotencyConflict)
    assert isinstance(results[2], RunNotFound)
    assert store.status(before.id) == store.status(after.id) == InProgress()
    with pytest.raises(RunNotFound):
        store.status(conflicting[0].id)


@pytest.mark.parametrize("error", [Bug, ZeroDivisionError, KeyError])
def test_a_bug_in_one_operation_spoils_no_neighbour(store: Store, error: type[Exception]) -> None:
    """Whatever breaks a group, each operation is done again in a transaction of its own."""
    before, after, broken = store.starting(), store.starting(), store.starting()

    def buggy() -> Op[None]:
        yield from start_runs(NAMESPACE, [broken])
        raise error

    results = store.write_together(
        lambda: start_runs(NAMESPACE, [before]), buggy, lambda: start_runs(NAMESPACE, [after])
    )

    assert (results[0], results[2]) == ([before.id], [after.id])
    assert isinstance(results[1], error)
    assert {row["id"] for row in store.system.table("runs")} == {before.id, after.id}


def test_a_statement_that_fails_spoils_no_neighbour(store: Store) -> None:
    """A database's error belongs to the operation that caused it."""
    good = store.starting()

    def wrong() -> Op[Any]:
        return (yield Statement("insert_worker", dict.fromkeys(("id", "namespace", "host", "pid")) | NAMES))

    results = store.write_together(wrong, lambda: start_runs(NAMESPACE, [good]))

    assert isinstance(results[0], Exception)
    assert results[1] == [good.id]


NAMES: dict[str, Any] = {"actions": None, "mutations": None, "queues": None}


def test_an_operation_that_raises_alone_leaves_nothing_behind(store: Store) -> None:
    start = store.starting()

    def buggy() -> Op[None]:
        yield from start_runs(NAMESPACE, [start])
        raise Bug

    with pytest.raises(Bug):
        store.write(buggy)

    assert store.system.table("runs") == []
    assert store.write(start_runs, NAMESPACE, [start]) == [start.id]


def test_a_read_sees_one_state_of_the_database(store: Store) -> None:
    """The statements of one operation belong together, whatever is committed between them."""
    run_id = store.start()
    other = store.system.open(store.clock)

    def twice() -> Op[list[str]]:
        seen = []
        for number in range(2):
            (row,) = yield Statement("select_status", {"namespace": NAMESPACE, "id": run_id})
            seen.append(row["state"])
            if number == 0:
                other.write_sync(lambda: cancel_run(NAMESPACE, run_id))
        return seen

    assert store.read(twice) == ["pending", "pending"]
    assert isinstance(store.status(run_id), Completed)


def test_a_read_cannot_write(store: Store) -> None:
    """What is meant to read takes no lock, and changes nothing by mistake."""
    with pytest.raises(Exception, match="readonly|read-only"):
        store.read(start_runs, NAMESPACE, [store.starting()])

    assert store.system.table("runs") == []
    assert store.status(store.start()) == InProgress()
