"""What a worker has to write: outcomes, collected while the last flush runs, and callbacks."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from random import Random

from ._clock import Clock
from ._completion import SHORT_S, Completion, Report
from ._execution import Execution, Key
from ._lifecycle import Attempted, Outcome, Reschedule, settle
from ._ops.claims import Claimant, claim_callbacks
from ._ops.reports import return_callbacks
from ._pace import Pauses
from ._statements import Row
from ._suspects import Suspects
from .config import logger
from .drivers import Database

_CALLBACK = "callback"  # the key of the one suspected callback that is called at a time
_BUSY_S = 0.1
_BATCH = 10  # callbacks that are claimed at once, or share a transaction at first ...
_LARGEST_BATCH = 200  # ... and at most, if they take `SHORT_S` together


class Reporter:
    """Collects the reports of one worker and writes them."""

    def __init__(
        self, *, database: Database, completion: Completion, clock: Clock, rng: Random, changed: Callable[[], None]
    ) -> None:
        """
        Begin with nothing to write.

        Args:
            changed: Called whenever something has been written.
        """
        self._database = database
        self._completion = completion
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._plain: list[Report] = []
        self._plain_wake = asyncio.Event()
        self._calling_back: list[Report] = []
        self._callback_wake = asyncio.Event()
        self._due = False
        self._claimed: list[tuple[Row, str]] = []  # callbacks, and as whom they were claimed
        self._pauses = Pauses()
        self._pause: asyncio.TimerHandle | None = None
        self._unwritten: dict[Key, Report] = {}
        self._held: set[Key] = set()  # of these, those whose runs somebody's open transaction holds
        self._calling = 0
        self._batch = _BATCH
        self._stopping = False

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be written or being called back, or may be due after a pause."""
        return bool(self._unwritten or self._calling or self._due or self._claimed or self._pause)

    def report(self, execution: Execution, outcome: Outcome, worker: str) -> None:
        """Settle an attempt that has ended, and collect what follows from it."""
        row, attempted = execution.row, execution.attempted
        if attempted.deadline_in_us is not None:
            elapsed_us = self._clock.monotonic_us() - execution.claimed_at_us
            attempted = Attempted(
                attempted.failures, attempted.losses, attempted.policy, attempted.deadline_in_us - elapsed_us
            )
        report = Report(
            row["id"],
            row["attempt"],
            worker,
            settle(attempted, outcome, self._rng),
            row["on_complete"],
            row["context"],
            execution.signals.progress,
            losses=row["losses"],
        )
        self._unwritten[execution.key] = report
        self._collect([report])

    def _collect(self, reports: Sequence[Report]) -> None:
        for report in reports:
            if report.calls_back:
                self._calling_back.append(report)
                self._callback_wake.set()
            else:
                self._plain.append(report)
                self._plain_wake.set()

    @property
    def backlog(self) -> int:
        """How many attempts have ended, and nobody knows it yet, though nobody else's transaction is in the way."""
        return len(self._unwritten) - len(self._held)

    def unwritten(self) -> set[Key]:
        """Return the attempts that have ended, and nobody knows it yet."""
        return set(self._unwritten)

    def unwritten_begun(self) -> set[Key]:
        """Return those of them that are not merely given back."""
        return {
            key
            for key, report in self._unwritten.items()
            if not isinstance(report.move, Reschedule) or report.move.failure is not None
        }

    def _written(self, reports: Sequence[Report], *, but: Sequence[Report]) -> None:
        """Forget reports, *but* those whose runs somebody's open transaction holds: they are tried again."""
        for report in reports:
            key = report.run_id, report.attempt
            if report in but:
                self._held.add(key)
            else:
                self._held.discard(key)
                self._unwritten.pop(key, None)
                if report.losses:
                    self._end_pause()
                    self.callbacks_are_due()  # such as its own
        if but:
            asyncio.get_running_loop().call_later(_BUSY_S, self._collect, but)
        self._changed()

    async def write_once(self) -> None:
        """Write what has been collected while the last flush was running."""
        await self._plain_wake.wait()
        self._plain_wake.clear()
        reports, self._plain = self._plain, []
        try:
            busy = await self._completion.write(reports) if reports else []
        except BaseException:
            # Nothing of it was written: the same again, with what has come in meanwhile.
            self._plain = reports + self._plain
            self._plain_wake.set()
            raise
        self._written(reports, but=busy)

    def callbacks_are_due(self) -> None:
        """Have pending callbacks claimed and called, unless that has just been in vain."""
        if not self._stopping and self._pause is None:
            self._due = True
            self._callback_wake.set()

    async def call_back_once(self, claimant: Callable[[], Claimant], suspects: Suspects) -> None:
        """End the runs that call back, then call the callbacks that are due by themselves."""
        await self._callback_wake.wait()
        self._callback_wake.clear()
        reports, self._calling_back = self._calling_back, []
        try:
            while reports:
                batch, began_s = reports[: self._batch], asyncio.get_running_loop().time()
                busy = await self._completion.complete(batch)
                self._written(batch, but=busy)
                reports = reports[len(batch) :]
                self._took(len(batch), asyncio.get_running_loop().time() - began_s)
        except BaseException:
            self._calling_back = reports + self._calling_back
            self._callback_wake.set()
            raise
        if self._due or self._claimed:
            self._calling += 1
            self._due = False
            try:
                has_called = await self._call_due(claimant(), suspects)
            except BaseException:
                self._callback_wake.set()  # what has been claimed is ours until it is called
                raise
            finally:
                self._calling -= 1
            if has_called:
                self._pauses.end()
            elif self._pause is None:
                # What is due is not ours to call yet. Even a claim in vain is a commit, which wakes whoever asks.
                self._pause = asyncio.get_running_loop().call_later(self._pauses.next_s(), self._end_pause)
                return
        self._changed()

    def _took(self, count: int, duration_s: float) -> None:
        """Note how long a batch of callbacks has taken, for the size of the next one."""
        if duration_s > SHORT_S:
            self._batch = max(_BATCH, self._batch // 2)
        elif count >= self._batch:
            self._batch = min(_LARGEST_BATCH, self._batch * 2)

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._changed()

    async def _call_due(self, claimant: Claimant, suspects: Suspects) -> bool:
        """Call what is due; tell whether there was anything that may be called now."""
        if self._stopping:
            await self._return_claimed()
            return True
        if not self._claimed:
            rows = await self._database.write(lambda: claim_callbacks(claimant, _BATCH, max_losses=0))
            self._claimed = [(row, claimant.id) for row in rows]
        has_called = False
        if len(self._claimed) >= _BATCH:
            self.callbacks_are_due()  # there may be more, and while all slots are taken nobody else asks for long
        if not any(row["callback_losses"] for row, _ in self._claimed):
            has_called = bool(self._claimed)
            await self._call_claimed()
        if not self._stopping:
            has_called = await self._call_suspect(claimant, suspects) or has_called
        return has_called

    async def _call_claimed(self) -> None:
        """Call what has been claimed; what fails to be written stays claimed, and is called again."""
        while self._claimed:
            if self._stopping:
                await self._return_claimed()
                return
            await self._completion.call_back(*self._claimed[0])
            self._claimed.pop(0)

    @property
    def callbacks(self) -> frozenset[str] | None:
        """The runs whose callbacks have been claimed and not been called yet; None while that changes."""
        return None if self._calling else frozenset(row["id"] for row, _ in self._claimed)

    async def return_strays(self, owned: Collection[str], worker: str, known: Collection[str] | None) -> None:
        """
        Give back the callbacks that are this worker's in the database, and not known here.

        A claim that went wrong has left them: its commit happened, and its answer was lost.

        Args:
            known: What `callbacks` was before *owned* was asked for.
        """
        strays = sorted(set(owned).difference(known or ()))
        if strays and known is not None and known == self.callbacks:
            logger.error("worker %s owns %d callbacks that it does not call; they are given back", worker, len(strays))
            await self._database.write(lambda: return_callbacks(strays, worker))

    async def _return_claimed(self) -> None:
        """Give back what has been claimed and not been called."""
        while self._claimed:
            row, worker = self._claimed[0]
            await self._database.write(lambda row=row, worker=worker: return_callbacks([row["id"]], worker))  # type: ignore[misc]
            self._claimed.pop(0)

    async def _call_suspect(self, claimant: Claimant, suspects: Suspects) -> bool:
        """Call one callback that may have cost a worker, if it may be called beside the suspects that execute."""
        # A suspect's end that nobody knows yet would be lost with us; we look again when it is written.
        if any(report.losses for report in self._unwritten.values()):
            return False
        loop = asyncio.get_running_loop()
        allowance = suspects.allowance(loop.time())
        if not allowance and not self._claimed:
            return False
        suspects.announce(_CALLBACK)
        try:
            if not self._claimed:  # else it is called again
                rows = await self._database.write(lambda: claim_callbacks(claimant, 1, allowance))
                self._claimed = [(row, claimant.id) for row in rows]
            if not self._claimed:
                return False
            losses = self._claimed[0][0]["callback_losses"]
            # Asked again: a claim of runs that was under way may have brought a suspect.
            if losses > suspects.allowance(loop.time(), of=_CALLBACK):
                await self._return_claimed()
                return False
            suspects.start(_CALLBACK, losses, loop.time())
            await self._call_claimed()
        finally:
            suspects.end(_CALLBACK)
        # Runs first: they are claimed while we look for the next one, which nobody else does while all slots are taken.
        self._changed()
        self.callbacks_are_due()
        return True

    def stop(self) -> None:
        """Call nothing more that is not owed with an outcome."""
        self._stopping = True
        self._due = False
        self._end_pause()
