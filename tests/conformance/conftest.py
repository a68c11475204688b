"""The store under test: every test of it runs on each database system, in both colours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from action_retrier.testing import ManualClock

from .. import invariants
from ..stores import COLOURS, Store, System
from .bench import Bench


@pytest.fixture(params=COLOURS)
def store(request: pytest.FixtureRequest, system: System, clock: ManualClock) -> Iterator[Store]:
    """An open database in one colour. Whatever a test has done to it, the invariants hold afterwards."""
    with contextlib.closing(Store(system, request.param, clock)) as store:
        yield store
        invariants.check(store.snapshot())


@pytest.fixture
def bench(system: System, clock: ManualClock) -> Iterator[Bench]:
    with contextlib.closing(Store(system, "sync", clock)) as store:
        bench = Bench(store)
        yield bench
        bench.mutations.close()
        invariants.check(store.snapshot())


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
