"""Transactions on SQLite that SQLite itself ends, or that stay open, or whose connection has to be taken away."""

import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from action_retrier._ops.starts import start_runs
from action_retrier.drivers.sqlite import connection as connection_module
from action_retrier.drivers.sqlite import transaction as module
from action_retrier.drivers.sqlite import writer
from action_retrier.drivers.sqlite.transaction import expel
from action_retrier.errors import DatabaseUnavailable
from action_retrier.results import InProgress

from ..stores import NAMESPACE, Store, until


@contextlib.contextmanager
def changed_by_hand(store: Store, there: str, back: str) -> Any:
    """Execute what somebody else does to the file, and take it back afterwards."""
    with contextlib.closing(sqlite3.connect(Path(store.database.location))) as theirs:
        theirs.execute(there)
        theirs.commit()
        yield
        theirs.execute(back)
        theirs.commit()


ROLLS_BACK = (
    "CREATE TRIGGER strange BEFORE INSERT ON action_retrier_runs BEGIN SELECT RAISE(ROLLBACK, 'no room'); END",
    "DROP TRIGGER strange",
)


@pytest.mark.parametrize("swallowed", [False, True])
def test_an_error_that_makes_sqlite_roll_back_leaves_nothing(store: Store, *, swallowed: bool) -> None:
    """A full disk may do that; the savepoint is gone with the transaction, and so is what came before."""
    with changed_by_hand(store, *ROLLS_BACK):
        expected = (DatabaseUnavailable, "rolled the transaction back") if swallowed else (sqlite3.Error, "no room")
        with pytest.raises(expected[0], match=expected[1]), store.transaction() as transaction:  # type: ignore[arg-type]
            transaction.note("before")
            with contextlib.suppress(sqlite3.Error) if swallowed else contextlib.nullcontext():
                transaction.run(start_runs, NAMESPACE, [store.starting()])

    assert (store.system.notes(), store.system.table("runs")) == ([], [])
    assert store.status(store.start()) == InProgress()


def test_a_full_disk_is_told_with_the_remedy(store: Store) -> None:
    """A call that has to be repeated, not a bug of whoever makes it."""
    store.start()
    connection = store.system.writer(store.database)._connection
    (size,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {size}").fetchall()

    with pytest.raises(DatabaseUnavailable, match="full"):
        store.start(args='{"text": "' + "x" * 100_000 + '"}')

    connection.execute("PRAGMA max_page_count = 1000000").fetchall()
    assert len(store.system.table("runs")) == 1
    assert store.status(store.start()) == InProgress()


def test_a_users_transaction_that_does_not_end_is_told_with_the_remedy(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not stand in the queue that processes of ours stand in."""
    monkeypatch.setattr(connection_module, "BUSY_TIMEOUT_S", 0.05)
    theirs = store.system.connect()
    store.system.write_note(theirs, "held")

    with pytest.raises(DatabaseUnavailable, match="is locked"):
        store.start()

    theirs.rollback()
    assert store.status(store.start()) == InProgress()


def test_a_transaction_that_stays_open_for_long_is_told_of(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else can write meanwhile, and does not know why."""
    monkeypatch.setattr(writer, "_LONG_LOAN_S", 0.01)
    with caplog.at_level(logging.WARNING), store.transaction() as transaction:
        transaction.note("slow")
        until(lambda: "has been open for long" in caplog.text)

    assert store.system.notes() == ["slow"]


class Stubborn:
    """A connection on which somebody's statement goes on for a while."""

    def __init__(self, lasts: int) -> None:
        self.lasts = lasts
        self.interrupts = 0
        self.is_rolled_back = False
        self.authorizer: Any = None

    def interrupt(self) -> None:
        self.interrupts += 1

    def rollback(self) -> None:
        self.lasts -= 1
        if self.lasts >= 0:
            raise sqlite3.OperationalError("interrupted")
        self.is_rolled_back = True

    def set_authorizer(self, authorizer: Any) -> None:
        self.authorizer = authorizer


@pytest.mark.parametrize(("lasts", "is_rolled_back"), [(0, True), (3, True), (1_000_000, False)])
def test_whoever_is_expelled_may_do_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
    lasts: int,
    is_rolled_back: bool,  # noqa: FBT001
) -> None:
    """A statement that was interrupted may take a moment to end; one that never does keeps the lock, and that is all."""
    monkeypatch.setattr(module, "_EXPEL_PAUSE_S", 0)
    connection: Any = Stubborn(lasts)

    expel(connection)

    assert connection.is_rolled_back is is_rolled_back
    assert connection.interrupts == (lasts + 1 if is_rolled_back else module._EXPEL_TRIES)
    assert connection.authorizer("any", "thing") == sqlite3.SQLITE_DENY
