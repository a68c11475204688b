"""What the reporter of a worker has not written yet, and which callbacks it calls."""

import asyncio
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from action_retrier._lifecycle import Attempted, NotBegun, Outcome, Raised, Succeeded, WorkerStopped
from action_retrier._ops.claims import Claimant
from action_retrier._policy import RetryPolicy
from action_retrier._reporter import Reporter
from action_retrier._suspects import Suspects
from action_retrier.testing import ManualClock

LIMIT_S = 5


@pytest.mark.parametrize(
    ("outcome", "has_begun"),
    [(Succeeded("1"), True), (Raised("E", "e"), True), (WorkerStopped(), True), (NotBegun(), False)],
)
def test_what_is_given_back_and_not_written_has_not_begun(outcome: Outcome, has_begun: bool) -> None:  # noqa: FBT001
    """I8: a worker that ends before it could write that charges only what has begun."""
    unused: Any = None
    reporter = Reporter(database=unused, completion=unused, clock=ManualClock(), rng=Random(1), changed=lambda: None)
    row = {"id": "r", "attempt": 3, "on_complete": "", "context": None, "losses": 0}
    execution: Any = SimpleNamespace(
        row=row,
        key=("r", 3),
        attempted=Attempted(0, 0, RetryPolicy()),
        signals=SimpleNamespace(progress=None),
        claimed_at_us=0,
    )

    reporter.report(execution, outcome, "w")

    assert reporter.is_busy
    assert reporter.unwritten() == {("r", 3)}
    assert reporter.unwritten_begun() == ({("r", 3)} if has_begun else set())


async def test_all_callbacks_that_are_due_are_called_after_one_look() -> None:
    """A worker whose slots are all taken looks seldom: ten of them were called, and the others waited for the next look."""
    due: dict[int, list[dict[str, Any]]] = {0: [{"id": f"plain {n}", "callback_losses": 0} for n in range(25)], 1: []}
    called: list[str] = []

    async def write(operation: Any) -> list[Any]:
        parameters = next(operation()).parameters
        kind = due[min(parameters["max_losses"], 1)]
        claimed, kind[:] = kind[: parameters["count"]], kind[parameters["count"] :]
        return claimed

    async def call_back(row: Any, _: str) -> None:
        called.append(row["id"])

    database: Any = SimpleNamespace(write=write)
    completion: Any = SimpleNamespace(call_back=call_back)
    reporter = Reporter(
        database=database, completion=completion, clock=ManualClock(), rng=Random(1), changed=lambda: None
    )
    claimant = Claimant("w", "default", "[]", "[]")

    reporter.callbacks_are_due()
    while reporter.is_busy:
        await asyncio.wait_for(reporter.call_back_once(lambda: claimant, Suspects()), LIMIT_S)

    assert len(called) == len(set(called)) == 25
