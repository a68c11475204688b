"""What the reporter of a worker has not written yet, and which callbacks it calls."""

import asyncio
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from action_retrier._lifecycle import Attempted, NotBegun, Outcome, Raised, Succeeded, WorkerStopped
from action_retrier._ops.claims import Claimant
from action_retrier._policy import RetryPolicy
from action_retrier._reporter import Reporter
from action_retrier._suspects import PROBATION_S, Suspects
from action_retrier.testing import ManualClock

LIMIT_S = 5


def ended(*, losses: int) -> Any:
    """Return an execution that has ended."""
    return SimpleNamespace(
        row={"id": "r", "attempt": 3, "on_complete": "", "context": None, "losses": losses},
        key=("r", 3),
        attempted=Attempted(losses, losses, RetryPolicy()),
        signals=SimpleNamespace(progress=None),
        claimed_at_us=0,
    )


@pytest.mark.parametrize(
    ("outcome", "has_begun"),
    [(Succeeded("1"), True), (Raised("E", "e"), True), (WorkerStopped(), True), (NotBegun(), False)],
)
def test_what_is_given_back_and_not_written_has_not_begun(outcome: Outcome, has_begun: bool) -> None:  # noqa: FBT001
    """I8: a worker that ends before it could write that charges only what has begun."""
    unused: Any = None
    reporter = Reporter(database=unused, completion=unused, clock=ManualClock(), rng=Random(1), changed=lambda: None)

    reporter.report(ended(losses=0), outcome, "w")

    assert reporter.is_busy
    assert reporter.unwritten() == {("r", 3)}
    assert reporter.unwritten_begun() == ({("r", 3)} if has_begun else set())


class Callbacks:
    """Callbacks that are due, and a reporter that calls them."""

    def __init__(self, *losses: int) -> None:
        self.due: list[dict[str, Any]] = [{"id": f"r{n}", "callback_losses": many} for n, many in enumerate(losses)]
        self.called: list[str] = []
        self.given_back: list[str] = []
        self.changes = 0
        self.while_claimed: Any = lambda: None
        self.reporter = Reporter(
            database=cast("Any", SimpleNamespace(write=self._write)),
            completion=cast("Any", SimpleNamespace(call_back=self._call_back, write=self._write_reports)),
            clock=ManualClock(),
            rng=Random(1),
            changed=self._changed,
        )
        self.suspects = Suspects()

    def _changed(self) -> None:
        self.changes += 1

    async def _write(self, operation: Any) -> list[Any]:
        statement = next(operation())
        if statement.name == "release_callback":
            self.given_back.append(statement.parameters["id"])
            return []
        most, limit = statement.parameters["max_losses"], statement.parameters["count"]
        claimed = [row for row in self.due if row["callback_losses"] <= most][:limit]
        self.due = [row for row in self.due if row not in claimed]
        if claimed:
            self.while_claimed()
        return claimed

    async def _write_reports(self, _: Any) -> list[Any]:
        return []

    async def _call_back(self, row: Any, _: str) -> None:
        self.called.append(row["id"])

    async def call_all(self) -> None:
        claimant = Claimant("w", "default", "[]", "[]")
        self.reporter.callbacks_are_due()
        async with asyncio.timeout(LIMIT_S):
            while self.reporter.is_busy and self.reporter._pause is None:  # until nothing more may be called for now
                await self.reporter.call_back_once(lambda: claimant, self.suspects)


async def test_all_callbacks_that_are_due_are_called_after_one_look() -> None:
    """A worker whose slots are all taken looks seldom: ten of them were called, and the others waited for the next look."""
    callbacks = Callbacks(*[0] * 25, *[1] * 5, 2, 3)

    await callbacks.call_all()

    assert len(callbacks.called) == len(set(callbacks.called)) == 32


async def test_between_two_suspected_callbacks_runs_have_their_turn() -> None:
    callbacks = Callbacks(1, 1, 1)

    await callbacks.call_all()

    assert callbacks.changes >= 3


@pytest.mark.parametrize(("losses", "is_called"), [(0, True), (1, True), (2, False)])
async def test_a_callback_that_was_lost_once_is_called_beside_a_suspect_past_its_probation(
    losses: int,
    is_called: bool,  # noqa: FBT001
) -> None:
    """A suspect may execute for hours. One that was lost again and again waits until it has the process to itself."""
    callbacks = Callbacks(losses)
    callbacks.suspects.start("a run", 1, asyncio.get_running_loop().time() - PROBATION_S)

    await callbacks.call_all()

    assert callbacks.called == (["r0"] if is_called else [])


@pytest.mark.parametrize("losses", [1, 2])
async def test_a_suspected_callback_is_not_called_beside_a_suspect_on_probation(losses: int) -> None:
    callbacks = Callbacks(losses)
    callbacks.suspects.start("a run", 1, asyncio.get_running_loop().time() + 10**6)

    await callbacks.call_all()

    assert callbacks.called == []


async def test_while_a_suspected_callback_is_claimed_no_suspect_may_start() -> None:
    callbacks = Callbacks(1)
    seen = []
    callbacks.while_claimed = lambda: seen.append(callbacks.suspects.allowance(asyncio.get_running_loop().time()))

    await callbacks.call_all()

    assert (seen, callbacks.called) == ([0], ["r0"])


async def test_a_suspected_callback_is_given_back_when_a_suspect_has_come_in_between() -> None:
    """A claim of runs that was under way has brought it."""
    callbacks = Callbacks(1)
    callbacks.while_claimed = lambda: callbacks.suspects.start("a run", 2, 0)

    await callbacks.call_all()

    assert (callbacks.called, callbacks.given_back) == ([], ["r0"])


async def test_a_suspected_callback_waits_until_the_ends_of_suspects_are_written() -> None:
    """They would be lost with it: each further crash is to cost only who has caused it."""
    callbacks = Callbacks(1)
    callbacks.reporter.report(ended(losses=1), Succeeded("1"), "w")
    claimant = Claimant("w", "default", "[]", "[]")
    callbacks.reporter.callbacks_are_due()
    await callbacks.reporter.call_back_once(lambda: claimant, callbacks.suspects)
    assert callbacks.called == []

    await callbacks.reporter.write_once()
    await callbacks.reporter.call_back_once(lambda: claimant, callbacks.suspects)
    assert callbacks.called == ["r0"]
