"""Wake-ups: commits are noticed at once; polling is the truth, so a lost one costs time only."""

import threading
from collections.abc import Iterator

import pytest

from ..stores import LIMIT_S, Store


class Bell:
    """Rings when a subscription is called."""

    def __init__(self, store: Store, *, active: bool = True) -> None:
        self._rung = threading.Event()
        self.subscription = store.database.changes.subscribe(self._rung.set)
        self.subscription.active = active

    def rings(self) -> bool:
        rung = self._rung.wait(LIMIT_S)
        self._rung.clear()
        return rung

    def has_rung(self) -> bool:
        return self._rung.is_set()

    def settle(self) -> None:
        """Forget what has rung."""
        self._rung.clear()


@pytest.fixture
def bell(store: Store) -> Iterator[Bell]:
    bell = Bell(store)
    assert bell.rings()  # the first look
    yield bell
    bell.subscription.close()


def test_a_commit_of_this_process_rings(store: Store, bell: Bell) -> None:
    store.start()

    assert bell.rings()


def test_a_commit_of_a_transaction_for_user_code_rings(store: Store, bell: Bell) -> None:
    with store.transaction() as transaction:
        transaction.note("mine")

    assert bell.rings()


def test_a_commit_of_somebody_else_rings(store: Store, bell: Bell) -> None:
    """Another process, or a user's own connection."""
    connection = store.system.connect()
    store.system.write_note(connection, "theirs")
    connection.commit()

    assert bell.rings()


def test_what_is_committed_while_nobody_listens_is_heard_of_afterwards(store: Store, bell: Bell) -> None:
    """A worker switches its bell on, then asks what is due: nothing falls between."""
    bell.subscription.active = False
    connection = store.system.connect()
    store.system.write_note(connection, "theirs")
    connection.commit()
    assert not bell.has_rung()

    bell.subscription.active = True

    assert bell.rings()


def test_an_inactive_bell_keeps_quiet(store: Store, bell: Bell) -> None:
    """While nobody listens nothing is looked for on his behalf."""
    quiet = Bell(store, active=False)

    store.start()

    assert bell.rings()
    assert not quiet.has_rung()
    quiet.subscription.close()


def test_a_closed_bell_keeps_quiet(store: Store, bell: Bell) -> None:
    closed = Bell(store)
    closed.subscription.close()
    closed.settle()

    store.start()

    assert bell.rings()
    assert not closed.has_rung()


def test_every_bell_rings(store: Store, bell: Bell) -> None:
    other = Bell(store)

    store.start()

    assert bell.rings()
    assert other.rings()
    other.subscription.close()
