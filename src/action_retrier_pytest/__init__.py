"""
The pytest plugin of action-retrier: fixtures, which do nothing for tests that do not ask for them.

A package of its own, that imports nothing of the library before a fixture is asked for: pytest imports plugins at each
of its starts, and the library costs what pytest itself does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from action_retrier import App
    from action_retrier.drivers import Address
    from action_retrier.testing import ManualClock

    Isolate = Callable[..., App]

__all__ = ["retrier_clock", "retrier_database", "retrier_isolate"]


@pytest.fixture
def retrier_clock() -> ManualClock:
    """A clock that stands still until the test moves it."""
    from action_retrier.testing import ManualClock  # noqa: PLC0415 - only who asks for it pays for it

    return ManualClock()


@pytest.fixture
def retrier_database(tmp_path: Path) -> str:
    """
    The URL of a database that nobody else has: a SQLite file in the test's own directory.

    It does not wait for the disk, which no test survives the loss of. Override the fixture to test on PostgreSQL.
    """
    return f"sqlite:///{tmp_path / 'action_retrier.db'}?synchronous=normal"


@pytest.fixture
def retrier_isolate(retrier_clock: ManualClock, retrier_database: Address) -> Iterator[Isolate]:
    """
    ``retrier_isolate(app)``: has an App that is made at import work on `retrier_database`, by `retrier_clock`.

    It is open until the test ends, and then as it was before. ``retrier_isolate(app, "postgresql://...")`` takes
    another database. Asked for the same again, by another fixture for one, it returns the app as it is.
    """
    from action_retrier.testing import isolated  # noqa: PLC0415 - only who asks for it pays for it

    isolation: dict[App, tuple[Address, ManualClock]] = {}
    with contextlib.ExitStack() as stack:

        def isolate(app: App, database: Address | None = None, *, clock: ManualClock | None = None) -> App:
            asked = (retrier_database if database is None else database, clock or retrier_clock)
            if app not in isolation:
                stack.enter_context(isolated(app, asked[0], clock=asked[1]))
                stack.enter_context(app)
                isolation[app] = asked
            elif isolation[app] != asked:
                raise RuntimeError(f"{app!r} is isolated in this test already, with another database or clock")
            return app

        yield isolate
