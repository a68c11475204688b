"""The claiming half of a worker's loop: ask what is due, claim it, sleep until there may be more."""

import asyncio
import contextlib
from random import Random
from typing import NamedTuple

from ._clock import Clock
from ._execution import Executions
from ._incarnation import Incarnation
from ._lanes import Lanes
from ._maintenance import Maintenance
from ._ops.claims import Claimed, NextDue, claim_runs, next_due
from ._pace import Pauses
from ._registry import Registry
from ._reporter import Reporter
from ._statements import Row
from ._suspects import PROBATION_S
from .config import logger
from .drivers import Database

POLL_S = 1.0
"""Polling is the truth; wake-ups only make it fast."""
_UNWRITTEN = 10  # reports at least that may be waiting to be written when more is claimed
_HAND_OVER_S = 0.0001
"""For how long the event loop lets the thread that sends a claim have the interpreter."""
_LATER_S = 0.005
"""How much later than its claim a suspect may begin, and by how much a loop may round."""


class _Answer(NamedTuple):
    """What came of one claim: *wanted* were asked for, as *worker*."""

    wanted: int
    worker: str
    claimed: Claimed


class Claiming:
    """Claims what one worker has room for, and knows when it is idle."""

    def __init__(
        self,
        *,
        database: Database,
        registry: Registry,
        clock: Clock,
        rng: Random,
        executions: Executions,
        reporter: Reporter,
        maintenance: Maintenance,
        incarnation: Incarnation,
    ) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._executions = executions
        self._reporter = reporter
        self._maintenance = maintenance
        self._incarnation = incarnation
        self._coming: asyncio.Task[_Answer] | None = None
        self.asked = self.answered = 0
        """How many claims there have been, and of how many everything is known here that they have brought."""
        self._pauses = Pauses()
        self._lanes = Lanes()
        self._suspects_are_due = False
        self._backlog = False  # the last claim brought all that was asked for: there may be more
        self._asked_s = self._asks_until_s = 0.0
        self._stopping = False
        self._wake = asyncio.Event()
        self._idle_waiters: list[asyncio.Future[None]] = []

    def begin(self) -> None:
        """Listen to what may make something due."""
        self._loop = asyncio.get_running_loop()
        self._subscription = self._database.changes.subscribe(self._wake_from_thread)
        self._unsubscribe_clock = self._clock.subscribe(self._wake_from_thread)

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self.wake()

    def close(self) -> None:
        """Listen to nothing more, and wait for nothing."""
        if self._coming is not None:
            self._coming.cancel()
        self._subscription.close()
        self._unsubscribe_clock()

    def wake(self) -> None:
        """Look again: something has ended, or may be due."""
        self._wake.set()

    def somebody_has_died(self) -> None:
        """Look again, for suspects as well."""
        self._suspects_are_due = True
        self._wake.set()

    async def until_idle(self) -> None:
        """Return when nothing that can be run, or called back, is due or under way."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._idle_waiters.append(waiter)
        self.wake()
        await waiter

    def tell_of_the_end(self) -> None:
        """Let those go who wait for idleness: the worker has ended."""
        _let_go(self._idle_waiters)

    async def once(self) -> None:
        """Claim what there is room for; when there is nothing, sleep until there may be."""
        self._wake.clear()
        waiters, self._idle_waiters = self._idle_waiters, []
        try:
            if self._coming is not None:
                await self._begin_coming()
                return
            if self._stopping:
                await self._wake.wait()
                return
            await self._incarnation.announce_news()
            look_again_s = await self._subscription.tune(self._incarnation.claimant.id, busy=self._backlog)
            free = self._free
            if await self._claim_at_once(free):
                return
            if self._backlog and not waiters and self._loop.time() - self._asked_s < POLL_S / 2:
                await self._sleep(NextDue(None, None), POLL_S)  # all slots are taken, and there is more: nothing to ask
                return
            # From here on commits wake us; what was committed before is seen by the question.
            self._subscription.active = True
            claimant, suspects = self._incarnation.claimant, self._executions.suspects
            allowance = suspects.allowance(self._loop.time())
            self._asked_s = self._loop.time()
            # What is under way now may leave something due that the question does not see yet.
            was_at_rest = self._is_at_rest
            everywhere = bool(waiters) or self._lanes.pace.is_due(self._asked_s)
            lanes = None if everywhere else self._lanes.to_json()
            due = await self._database.read(lambda: next_due(claimant, allowance, lanes))
            if everywhere:
                self._lanes.pace.took(self._asked_s, self._loop.time())
                self._lanes.found(due.lanes)
                self._suspects_are_due = due.suspects_are_due
            if due.callbacks_us is not None and due.callbacks_us <= 0:
                self._reporter.callbacks_are_due()
            if due.deadline_us is not None and due.deadline_us <= 0 and await self._maintenance.expire():
                return  # a deadline does not wait for a slot
            work_is_due = due.work_us is not None and due.work_us <= 0
            if work_is_due and free > 0:
                await self._claim_in_a_race(free)
                return
            if waiters and not work_is_due and was_at_rest:
                await self._tell_of_idleness(waiters)
            rest_s = self._lanes.pace.rest_s(self._loop.time())
            await self._sleep(due, min(POLL_S, look_again_s or POLL_S, rest_s or POLL_S))
        finally:
            self._subscription.active = False
            self._idle_waiters += [waiter for waiter in waiters if not waiter.done()]

    async def _claim_at_once(self, free: int) -> bool:
        """
        Claim where that is likely to bring something; tell whether it has.

        Else a question comes first: a commit wakes every idle worker, and only one of them should take SQLite's
        write lock for it.
        """
        told, self._subscription.was_told = self._subscription.was_told, False
        now_s = self._loop.time()
        may_claim = self._backlog or (told and now_s >= self._asks_until_s)
        if not may_claim or free <= 0 or self._must_look_everywhere():
            return False
        if await self._claim(free):
            return True
        if told:
            self._asks_until_s = now_s + self._subscription.asks_after_vain_s
        return False

    @property
    def _free(self) -> int:
        """How many more to claim: none while as many as may execute have ended, and nobody knows it yet."""
        # If we die, those are lost as well. They pile up where callbacks take longer than actions.
        most = max(self._executions.concurrency, _UNWRITTEN)
        if self._reporter.backlog >= most:
            return 0
        if not self._database.works_beside:
            return self._executions.free
        # By halves: the database is at one while the other is executed.
        return min(self._executions.free, -(-self._executions.concurrency // 2))

    @property
    def is_under_way(self) -> bool:
        """Whether a claim is: what it brings is not known here yet."""
        return self.answered < self.asked

    def _must_look_everywhere(self) -> bool:
        """Whether the lanes that are known may be too old: a new one may be more urgent than all of them."""
        now_s = self._loop.time()
        return now_s - self._lanes.pace.last_s >= POLL_S and self._lanes.pace.is_due(now_s)

    async def _claim_in_a_race(self, free: int) -> None:
        """Claim what was due a moment ago; if somebody else was faster, give him time before the next question."""
        if await self._claim(free):
            self._pauses.end()
            return
        await asyncio.sleep(self._pauses.next_s())

    async def _claim(self, free: int) -> bool:
        """Claim and begin; tell whether there may be more."""
        return self._ask(free) and await self._begin_coming()

    def _ask(self, count: int) -> bool:
        """Have as many claimed, unless we may not."""
        if not self._incarnation.holds_lease:
            return False  # nothing of it might begin: it would be claimed, and given back, again and again
        claimant = self._incarnation.claimant
        # A claim asks for suspects only after a look has seen some: mostly there are none.
        allowance = self._executions.suspects.allowance(self._loop.time()) if self._suspects_are_due else 0
        lanes = self._lanes.to_json()

        async def ask() -> _Answer:
            claimed = await self._database.write(lambda: claim_runs(claimant, count, allowance, lanes))
            return _Answer(count, claimant.id, claimed)

        self.asked += 1
        self._coming = self._loop.create_task(ask(), name="action-retrier-ask")
        return True

    async def _begin_coming(self) -> bool:
        """Begin what the claim that is under way brings, while the next one is; tell whether there may be more."""
        assert self._coming is not None
        number = self.asked
        try:
            wanted, worker, claimed = await self._coming
            claimed_at_us = self._clock.monotonic_us()
            self._lanes.took(claimed.runs)
            rows = [*claimed.suspects, *claimed.runs]
            self._backlog = len(rows) >= wanted
            self._coming = None
            # Not after suspects: what may be claimed beside them is known once they have begun.
            may_ask = self._backlog and not claimed.suspects and not self._stopping
            more = min(self._free, self._executions.free - len(rows)) if may_ask else 0
            if more > 0 and self._ask(more):
                await asyncio.sleep(_HAND_OVER_S)
            for row in rows:
                self._begin(row, claimed_at_us)
        finally:
            if self.asked == number:
                self._coming = None
            self.answered = number
        if not claimed.registered:
            await self._incarnation.begin_again(worker)
            return True
        if claimed.suspects:
            self._loop.call_later(PROBATION_S + _LATER_S, self._wake.set)
        await asyncio.sleep(0)  # they begin first; the next question wakes a thread that competes for the interpreter
        return bool(rows)

    def _begin(self, row: Row, claimed_at_us: int) -> None:
        try:
            self._executions.begin(row, self._registry.actions[row["action"]], claimed_at_us)
        except Exception:  # noqa: BLE001 - our own bug, or a damaged row: its neighbours begin all the same
            logger.exception("run %s could not be begun; it is given back", row["id"])

    async def _tell_of_idleness(self, waiters: list[asyncio.Future[None]]) -> None:
        await self._maintenance.prune_if_due()
        if self._is_at_rest:
            _let_go(waiters)

    @property
    def _is_at_rest(self) -> bool:
        return not self._executions and not self._reporter.is_busy

    async def _sleep(self, due: NextDue, poll_s: float) -> None:
        """Sleep until something is due, somebody wakes us, or it is time to look anyway."""
        poll = self._loop.call_later(poll_s * (0.75 + self._rng.random() / 4), self._wake.set)
        waits_us = [us for us in (due.work_us, due.callbacks_us) if us is not None and 0 < us < POLL_S * 1e6]
        timers = [poll, *(self._clock.call_later(us, self._wake.set) for us in waits_us)]
        try:
            await self._wake.wait()
        finally:
            for timer in timers:
                timer.cancel()

    def _wake_from_thread(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._wake.set)


def _let_go(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
