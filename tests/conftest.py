"""What the tests of storage share, whatever they look at: time that stands still, and each database system."""

from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest

from action_retrier.testing import ManualClock

from .stores import SYSTEMS, System, open_system, systems_for


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a system on each, unless it is marked with one, or its module is named after one."""
    if "system" in metafunc.fixturenames:
        marked = [name for name in SYSTEMS if metafunc.definition.get_closest_marker(name)]
        if "database" in signature(metafunc.function).parameters:
            marked = ["sqlite"]  # a file
        systems = marked or systems_for(metafunc.module)
        metafunc.parametrize("system", systems, indirect=True, scope="function")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A fresh database that holds a table of the user's own."""
    system = open_system(request.param, tmp_path)
    yield system
    system.close()
