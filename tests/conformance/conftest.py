"""The store under test: every test of it runs on each database system, in both colours."""

import contextlib
from collections.abc import Iterator

import pytest

from action_retrier.testing import ManualClock

from .. import invariants
from ..stores import COLOURS, Store, System


@pytest.fixture(params=COLOURS)
def store(request: pytest.FixtureRequest, system: System, clock: ManualClock) -> Iterator[Store]:
    """An open database in one colour. Whatever a test has done to it, the invariants hold afterwards."""
    with contextlib.closing(Store(system, request.param, clock)) as store:
        yield store
        invariants.check(store.snapshot())
