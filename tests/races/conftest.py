"""Two who want the same thing at once, held in order; nobody sleeps."""

from collections.abc import Iterator

import pytest

from action_retrier.drivers import Database
from action_retrier.testing import ManualClock

from .. import invariants
from ..stores import Store, System


@pytest.fixture
def store(system: System, clock: ManualClock) -> Iterator[Store]:
    store = Store(system, "sync", clock)
    yield store
    invariants.check(store.snapshot())
    store.close()


@pytest.fixture
def other(system: System, clock: ManualClock, store: Store) -> Database:
    """The same database, opened once more, as another process would."""
    return system.open(clock)
