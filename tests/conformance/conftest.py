"""The store under test: every test of it runs on each database system, in both colours."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from action_retrier.testing import ManualClock

from .. import invariants
from ..stores import COLOURS, SYSTEMS, Store, System, open_system


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A fresh database that holds a table of the user's own."""
    system = open_system(request.param, tmp_path)
    yield system
    system.close()


@pytest.fixture(params=COLOURS)
def store(request: pytest.FixtureRequest, system: System, clock: ManualClock) -> Iterator[Store]:
    """An open database in one colour. Whatever a test has done to it, the invariants hold afterwards."""
    with contextlib.closing(Store(system, request.param, clock)) as store:
        yield store
        invariants.check(store.snapshot())
