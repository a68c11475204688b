"""One life of a worker after the other: what it has announced, and what is left of one that never began."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from action_retrier import _incarnation
from action_retrier._functions import Action
from action_retrier._incarnation import Incarnation
from action_retrier._ops.workers import list_workers
from action_retrier._registry import Registry
from action_retrier.testing import ManualClock

from ..stores import NAMESPACE, System


class _Watched:
    """A database that knows whose leases are held, and where something may happen after a read or a write."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.held: set[str] = set()
        self.after_write: Any = None
        self.after_read: Any = None
        self.leases = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def read(self, make: Any) -> Any:
        result = await self._database.read(make)
        after, self.after_read = self.after_read, None
        if after is not None:
            after()
        return result

    async def write(self, make: Any) -> Any:
        result = await self._database.write(make)
        after, self.after_write = self.after_write, None
        if after is not None:
            await after()
        return result

    def acquire(self, worker: str) -> None:
        self._database.leases.acquire(worker)
        self.held.add(worker)

    def announce(self, worker: str) -> None:
        self._database.leases.announce(worker)

    def renew(self, worker: str) -> bool:
        return self._database.leases.renew(worker)

    def is_fresh(self, worker: str) -> bool:
        return self._database.leases.is_fresh(worker)

    def release(self, worker: str, *, signed_off: bool = True) -> None:
        self._database.leases.release(worker, signed_off=signed_off)
        self.held.discard(worker)


@pytest.fixture
def database(system: System, clock: ManualClock) -> Iterator[Any]:
    database = _Watched(system.open(clock))
    yield database
    database.close()


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add_action(Action(lambda: None, "charge"))
    return registry


@pytest.fixture
def incarnation(database: Any, registry: Registry) -> Incarnation:
    return Incarnation(database, registry, NAMESPACE, None, taken_for_dead=lambda: None)


async def test_a_worker_that_cannot_announce_itself_holds_no_lease(
    database: Any, incarnation: Incarnation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would ever ask after it."""

    def fail(*_: Any) -> Any:
        raise LookupError("no room for a row")

    with monkeypatch.context() as patch:
        patch.setattr(_incarnation, "register_worker", fail)
        with pytest.raises(LookupError):
            await incarnation.begin()
    assert database.held == set()

    await incarnation.begin()
    assert database.held == {incarnation.claimant.id}
    incarnation.end()
    assert database.held == set()


async def test_news_that_a_worker_announces_under_its_old_id_leave_its_new_one_alone(
    database: Any, registry: Registry, incarnation: Incarnation
) -> None:
    """It was taken for dead meanwhile, and has announced all that it knows under the new id."""
    await incarnation.begin()
    before = incarnation.claimant
    registry.add_action(Action(lambda: None, "refund"))
    database.after_write = lambda: incarnation.begin_again(before.id)

    await incarnation.announce_news()

    after = incarnation.claimant
    assert after.id != before.id
    assert after.actions == '["charge", "refund"]'
    rows = await database.read(lambda: list_workers(NAMESPACE))
    assert after.id in {row["id"] for row in rows}
    assert database.held == {after.id}
    incarnation.end()


async def test_a_doubt_that_comes_while_it_asks_is_a_doubt(database: Any, incarnation: Incarnation) -> None:
    """I1: the answer is of before, so nothing may begin until it has asked again."""
    await incarnation.begin()
    incarnation._doubt()
    await asyncio.wait_for(incarnation.in_doubt.wait(), 30)
    database.after_read = incarnation.in_doubt.set

    await incarnation.check()
    assert not incarnation.holds_lease

    await incarnation.check()
    assert incarnation.holds_lease
    incarnation.end()
