"""Wake-ups: commits of this process are noticed at once; polling is the truth, so a lost one costs time only."""

from collections.abc import Iterator

import pytest

from ..stores import Bell, Store


@pytest.fixture
def bell(store: Store) -> Iterator[Bell]:
    bell = Bell(store)
    yield bell
    bell.subscription.close()


def test_a_commit_of_this_process_rings(store: Store, bell: Bell) -> None:
    store.start()

    assert bell.rings()


def test_a_commit_of_a_transaction_for_user_code_rings(store: Store, bell: Bell) -> None:
    with store.transaction() as transaction:
        transaction.note("mine")

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
