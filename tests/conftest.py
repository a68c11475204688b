"""What the tests of storage share, whatever they look at: time that stands still, and each database system."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from action_retrier.testing import ManualClock

from .stores import System, open_system, systems_for


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a system on each, unless its module is named after the one that it is about."""
    if "system" in metafunc.fixturenames:
        metafunc.parametrize("system", systems_for(metafunc.module), indirect=True, scope="function")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A fresh database that holds a table of the user's own."""
    system = open_system(request.param, tmp_path)
    yield system
    system.close()
