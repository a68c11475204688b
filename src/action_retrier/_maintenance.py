"""What any worker does for all: recover dead workers' runs, expire, prune, warn. No leader, no cron."""

from random import Random

from ._clock import Clock
from ._codec import loads
from ._ops.control import prune_runs
from ._ops.reports import expire_runs
from ._ops.workers import Recovered, list_owners, list_workers, recover_worker, waiting_lanes
from ._statements import Op
from .config import logger
from .drivers import Database

_PRUNE_EVERY_US = 60_000_000
_WARN_EVERY_US = 60_000_000
_BATCH = 1000


class Maintenance:
    """The periodic duties of one worker."""

    def __init__(self, database: Database, clock: Clock, rng: Random, namespace: str, retention_us: int) -> None:
        self._database = database
        self._clock = clock
        self._rng = rng
        self._namespace = namespace
        self._retention_us = retention_us
        self.look_again_s = 0.0
        """After how long deaths are to be looked for again."""
        self._prune_at = clock.monotonic_us()
        self._warn_at = clock.monotonic_us() + _WARN_EVERY_US // 60

    async def recover_dead(self, own: str) -> bool:
        """Settle what dead workers left; tell whether there was one."""
        namespace = self._namespace
        # Those without a row are asked after as well: nobody else would.
        owners = await self._database.read(lambda: list_owners(namespace))
        others = sorted(owners.union(self._database.leases.left_behind()) - {own})
        dead = await self._database.leases.dead(others) if others else []
        self.look_again_s = self._database.leases.look_again_s(alone=not others)
        for worker in dead:
            recovered = await self._database.write(lambda worker=worker: self._recover(worker))  # type: ignore[misc]
            if recovered is not None and recovered.is_over:
                self._database.leases.forget(worker)
            if recovered is not None and ((recovered.is_over and recovered.was_there) or recovered.settled):
                logger.warning("worker %s is dead: recovered %d runs", worker, recovered.settled)
        return bool(dead)

    def _recover(self, worker: str) -> Op[Recovered | None]:
        """Recover, unless it has shown a sign of life since we looked: we have the write lock now."""
        if not (yield from self._database.leases.is_still_dead(worker)):
            return None
        return (yield from recover_worker(worker, self._rng))

    async def expire(self) -> int:
        """Fail pending runs whose deadline has passed; return how many."""
        namespace = self._namespace
        return await self._database.write(lambda: expire_runs(namespace, _BATCH))

    async def prune_if_due(self) -> None:
        """Remove old completed runs, in batches, now and then."""
        if self._clock.monotonic_us() < self._prune_at:
            return
        self._prune_at = self._clock.monotonic_us() + round(_PRUNE_EVERY_US * (0.5 + self._rng.random()))
        namespace, age_us = self._namespace, self._retention_us
        pruned = 0
        while True:
            count = await self._database.write(lambda: prune_runs(namespace, age_us, _BATCH))
            pruned += count
            if count < _BATCH:
                break
        if pruned:
            logger.info("removed %d runs that completed more than %.3g days ago", pruned, age_us / 86_400e6)

    async def warn_if_due(self) -> None:
        """Warn of due runs whose action or callback no live worker knows, once a minute."""
        if self._clock.monotonic_us() < self._warn_at:
            return
        self._warn_at = self._clock.monotonic_us() + _WARN_EVERY_US
        namespace = self._namespace
        lanes = await self._database.read(lambda: waiting_lanes(namespace))
        workers = await self._database.read(lambda: list_workers(namespace))
        actions = {name for row in workers for name in loads(row["actions"])}
        mutations = {name for row in workers for name in loads(row["mutations"])}
        for kind, known, names in (
            ("action", actions, {lane["action"] for lane in lanes}),
            ("callback", mutations, {lane["on_complete"] for lane in lanes if lane["on_complete"]}),
        ):
            for name in sorted(names - known):
                logger.warning("runs are waiting for the %s %r, which no worker knows", kind, name)
