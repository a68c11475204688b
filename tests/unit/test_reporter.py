"""What the reporter of a worker has not written yet."""

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from action_retrier._lifecycle import Attempted, NotBegun, Outcome, Raised, Succeeded, WorkerStopped
from action_retrier._policy import RetryPolicy
from action_retrier._reporter import Reporter
from action_retrier.testing import ManualClock


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
