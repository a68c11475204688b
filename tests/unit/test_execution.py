"""The attempts of one worker: how they end, however they are stopped, and that there is an outcome whatever happens."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from action_retrier import _execution
from action_retrier._execution import Execution, Executions
from action_retrier._functions import Action
from action_retrier._lifecycle import NotBegun, Outcome, Raised, Succeeded, TimedOut
from action_retrier._policy import RetryPolicy
from action_retrier.testing import ManualClock

LIMIT_S = 30


class Bench:
    """Attempts, and what was reported of them."""

    def __init__(self) -> None:
        self.told: list[Outcome] = []
        self.refuses = 0
        self.holds_lease = True
        self.executions = Executions(
            database=_NoDatabase(),  # type: ignore[arg-type]
            mutations=None,  # type: ignore[arg-type]
            clock=ManualClock(),
            concurrency=10,
            may_begin=lambda: self.holds_lease,
            report=self._report,
            ended=self._end,
        )
        self._ended = asyncio.Event()

    def _report(self, execution: Execution, outcome: Outcome) -> None:
        if self.refuses:
            self.refuses -= 1
            raise LookupError("a bug")
        self.told.append(outcome)

    def _end(self) -> None:
        self._ended.set()

    def begin(self, function: Callable[..., Any]) -> Execution:
        options = RetryPolicy(attempt_timeout_ms=5000).to_json()
        row = {"id": "r", "attempt": 1, "args": "{}", "options": options, "failures": 0, "losses": 0}
        self.executions.begin({**row, "deadline_in": None}, Action(function, "charge"), 0)
        return self.executions._by_key["r", 1]

    async def until_an_end(self) -> None:
        await asyncio.wait_for(self._ended.wait(), LIMIT_S)


class _NoDatabase:
    in_user_thread = staticmethod(lambda: threading.Lock())


@pytest.fixture
async def bench() -> Any:
    bench = Bench()
    yield bench
    bench.executions.close()


async def test_what_has_not_begun_is_given_back(bench: Bench) -> None:
    """I8: claimed in the worker's last moment, and no failure."""
    begun = []
    bench.begin(lambda: begun.append(1))

    bench.executions.give_back_unbegun()
    await bench.until_an_end()

    assert (bench.told, begun) == ([NotBegun()], [])


async def test_what_a_lease_that_may_have_ended_covers_is_given_back(bench: Bench) -> None:
    """Stopped between the claim and the beginning: an heir may be executing it."""
    begun = []
    bench.holds_lease = False
    bench.begin(lambda: begun.append(1))

    await bench.until_an_end()

    assert (bench.told, begun) == ([NotBegun()], [])


async def test_what_is_stopped_before_it_begins_does_not_begin(bench: Bench) -> None:
    """A function without await, too, whose task is not canceled: it runs in a thread of its own once it has begun."""
    begun = []
    bench.begin(lambda: begun.append(1))
    bench.executions.stop_begun("lease_lost")

    await bench.until_an_end()

    assert (bench.told, begun) == ([NotBegun()], [])


async def test_the_first_reason_to_stop_counts(bench: Bench) -> None:
    """What was out of time and is canceled by the way has timed out."""

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    execution = bench.begin(wait)
    await asyncio.sleep(0)
    bench.executions.stop_begun("timed_out")
    bench.executions.stop_begun("canceled")
    await bench.until_an_end()

    assert execution.signals.stop_reason == "timed_out"
    assert bench.told == [TimedOut(5000)]


async def test_a_canceled_thread_that_does_not_react_is_nobodys_business(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has its outcome, so there is nothing to report; the slot stays taken until the thread ends."""
    monkeypatch.setattr(_execution, "STOP_GRACE_S", 0)
    begun, release = threading.Event(), threading.Event()

    def ignore() -> None:
        begun.set()
        release.wait(LIMIT_S)

    bench.begin(ignore)
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    bench.executions.stop_begun("canceled")
    await bench.until_an_end()

    assert (bench.told, bench.executions.live, len(bench.executions)) == ([], 0, 1)

    bench._ended.clear()
    release.set()
    await bench.until_an_end()
    assert (bench.told, len(bench.executions)) == ([], 0)


async def test_an_attempt_that_ends_with_its_event_loop_has_failed(bench: Bench) -> None:
    """`asyncio.run` cancels what is left: a thread that executes is no success."""
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(LIMIT_S)

    execution = bench.begin(work)
    assert await asyncio.to_thread(begun.wait, LIMIT_S)
    assert execution.task is not None
    execution.task.cancel()
    await bench.until_an_end()
    release.set()

    (outcome,) = bench.told
    assert isinstance(outcome, Raised)
    assert outcome.error_type == "asyncio.exceptions.CancelledError"


async def test_a_bug_of_ours_fails_the_run_and_does_not_leave_it_running(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong while its outcome is judged, there is one."""
    bench.refuses = 1

    bench.begin(lambda: 7)
    await bench.until_an_end()

    (outcome,) = bench.told
    assert isinstance(outcome, Raised)
    assert (outcome.error_type, outcome.retryable) == ("LookupError", False)
    assert "unexpected error: run r fails by it" in caplog.text
    assert not isinstance(outcome, Succeeded)
