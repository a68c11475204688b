"""Who a worker is to the others: its id, its row with the names that it knows, and its lease."""

import asyncio
import contextlib
import json
import os
import platform
from collections.abc import Callable

from ._ids import new_worker_id
from ._leases import Heartbeat
from ._ops.claims import Claimant
from ._ops.workers import announce_names, list_workers, register_worker
from ._registry import Registry
from .config import logger
from .drivers import Database


class Incarnation:
    """One life of a worker under one id; taken for dead by others, it goes on under a new one."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        namespace: str,
        queues: list[str] | None,
        *,
        taken_for_dead: Callable[[], None],
    ) -> None:
        """
        Begin unknown to the others.

        Args:
            taken_for_dead: Called when it goes on under a new id: what it had is others' now.
        """
        self._database = database
        self._registry = registry
        self._namespace = namespace
        self._queues = queues
        self._taken_for_dead = taken_for_dead
        self._registering = asyncio.Lock()
        self._known = (0, 0)
        self._claimant = self._named("")
        self._heartbeat: Heartbeat | None = None
        self._is_in_doubt = False
        self.in_doubt = asyncio.Event()
        """Set when the lease may have ended."""

    @property
    def claimant(self) -> Claimant:
        """What claims are made with."""
        return self._claimant

    @property
    def holds_lease(self) -> bool:
        """Whether nobody else can have taken over what we have claimed, as far as can be told without asking."""
        return not self._is_in_doubt and self._database.leases.is_fresh(self._claimant.id)

    def _named(self, worker: str) -> Claimant:
        return Claimant(
            worker,
            self._namespace,
            json.dumps(sorted(self._registry.actions)),
            json.dumps(sorted(self._registry.mutations)),
            None if self._queues is None else json.dumps(self._queues),
        )

    def _count(self) -> tuple[int, int]:
        return len(self._registry.actions), len(self._registry.mutations)

    async def begin(self) -> None:
        """Take a lease and announce it."""
        self._loop = asyncio.get_running_loop()
        known, claimant = self._count(), self._named(new_worker_id())
        # The schema, and the directory of the leases, are there once something has been read.
        await self._database.read(lambda: list_workers(self._namespace))
        loop = self._loop
        # In a thread: it may have to connect.
        heartbeat = await asyncio.to_thread(
            Heartbeat, self._database.leases, claimant.id, is_wanted=lambda: not loop.is_closed(), lost=self._doubt
        )
        try:
            await self._database.write(lambda: register_worker(claimant, platform.node(), os.getpid()))
        except BaseException:
            heartbeat.stop()
            raise
        heartbeat.start()
        # Only now: a claim under an id that has no row would find itself taken for dead.
        self._claimant, self._known, self._heartbeat = claimant, known, heartbeat
        self._is_in_doubt = False

    def _doubt(self) -> None:
        self._is_in_doubt = True  # from the heartbeat's thread: what begins before the loop hears of it has to know
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.in_doubt.set)

    async def begin_again(self, lost: str) -> None:
        """Others have taken us for dead, as *lost*: go on under a new id."""
        async with self._registering:
            if self._claimant.id != lost:
                return  # claiming and watching both notice it: the other one was first
            logger.warning("worker %s was taken for dead; it goes on under a new id", lost)
            self.end()
            await self.begin()
            self._taken_for_dead()

    async def check(self) -> None:
        """Look whether the others still know us, if the lease is in doubt."""
        if not self.in_doubt.is_set():
            return
        worker = self._claimant.id
        self.in_doubt.clear()
        try:
            rows = await self._database.read(lambda: list_workers(self._namespace))
        except BaseException:
            self.in_doubt.set()
            raise
        if not any(row["id"] == worker for row in rows):
            await self.begin_again(worker)
        elif not self.in_doubt.is_set():
            self._is_in_doubt = False

    async def announce_news(self) -> None:
        """Know, and tell, what has been registered since we began."""
        known = self._count()
        if known != self._known:
            claimant = self._named(self._claimant.id)
            await self._database.write(lambda: announce_names(claimant))
            if claimant.id == self._claimant.id:
                self._claimant, self._known = claimant, known

    def end(self, *, signed_off: bool = True) -> None:
        """Give up the lease."""
        if self._heartbeat is not None:
            self._heartbeat.stop(signed_off=signed_off)
