"""What the tests of storage share, whatever they look at: time that stands still, and each database system."""

from collections.abc import Generator, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

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


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Make what a test says fit for the way to pytest-xdist's other process, which breaks down over a lone surrogate."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_encodable(key): _encodable(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(_encodable, value))
    return value


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """A fresh database that holds a table of the user's own."""
    system = open_system(request.param, tmp_path)
    yield system
    system.close()
