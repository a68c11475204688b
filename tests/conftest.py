"""What the tests of storage share, whatever they look at: time that stands still, and each database system."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from action_retrier.testing import ManualClock

from .stores import SYSTEMS, System, open_system


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A fresh database that holds a table of the user's own."""
    system = open_system(request.param, tmp_path)
    yield system
    system.close()
