"""One execution of an action: whatever it does, there is an outcome, and it can be stored."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

import pydantic
import pytest

from action_retrier._attempt import execute
from action_retrier._contexts import ActionCtx, AttemptSignals
from action_retrier._functions import Action
from action_retrier._lifecycle import Outcome, Raised, Succeeded
from action_retrier._threads import DaemonThreads
from action_retrier.errors import NonRetryableError, RetryAfter

LIMIT_BYTES = 16 * 1024
UGLY = "a NUL \0 and a lone surrogate \ud800"


@pytest.fixture
def threads():
    pool = DaemonThreads(2, "attempts-under-test")
    yield pool
    pool.close()


@pytest.fixture(params=["def", "async def"])
def run(request: pytest.FixtureRequest, threads: DaemonThreads) -> Callable[..., Any]:
    """Execute a function as an action, of either colour, once."""

    async def run(function: Callable[..., Any], args: str = "{}", **options: Any) -> Outcome:
        if request.param == "async def":

            async def action(**given: Any) -> Any:
                return function(**given)

            action.__annotations__ = function.__annotations__
            action.__wrapped__ = function  # type: ignore[attr-defined]
            return await execute(Action(action, "charge", **options), args, None, threads)
        return await execute(Action(function, "charge", **options), args, None, threads)

    return run


def storable(outcome: Outcome) -> bool:
    """Tell whether a database takes what an outcome says."""
    assert isinstance(outcome, Raised)
    for text in (outcome.error_type, outcome.error, outcome.traceback or ""):
        assert "\0" not in text
        text.encode()
    assert len(outcome.error.encode()) <= LIMIT_BYTES
    return True


async def test_what_an_action_returns_is_its_result(run: Any) -> None:
    def charge(order_id: int) -> dict[str, int]:
        return {"order": order_id}

    assert await run(charge, '{"order_id": 7}') == Succeeded('{"order":7}')


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), StopIteration(7)],
    ids=repr,
)
async def test_whatever_an_action_raises_is_a_failure_that_is_retried(run: Any, error: BaseException) -> None:
    """SystemExit, KeyboardInterrupt and its own CancelledError included: the worker lives on."""

    def fail() -> None:
        raise error

    outcome = await run(fail)

    assert isinstance(outcome, Raised)
    assert outcome.retryable
    assert storable(outcome)
    assert outcome.error_type.rpartition(".")[2] in {type(error).__name__, "RuntimeError"}


async def test_an_action_steers_its_retries(run: Any) -> None:
    def later() -> None:
        raise RetryAfter(1500, "slow down")

    def never() -> None:
        raise NonRetryableError("no way")

    def never_because() -> None:
        raise NonRetryableError from KeyError("the cause")

    def later_because() -> None:
        raise RetryAfter(5) from OSError("the cause")

    outcomes = [await run(one) for one in (later, never, never_because, later_because)]

    told = [(one.error_type.rpartition(".")[2], one.error, one.retryable, one.retry_after_ms) for one in outcomes]
    assert told == [
        ("RetryAfter", "slow down", True, 1500),
        ("NonRetryableError", "no way", False, None),
        ("KeyError", "'the cause'", False, None),
        ("OSError", "the cause", True, 5),
    ]


async def test_types_say_what_is_worth_a_retry(run: Any) -> None:
    def fail() -> None:
        raise ConnectionError

    assert (await run(fail, retry_on=(OSError,))).retryable
    assert not (await run(fail, retry_on=(ValueError,))).retryable
    assert not (await run(fail, no_retry_on=(OSError,))).retryable


class Odd:
    """Nothing that JSON knows."""


class Strange(pydantic.BaseModel):
    """A model whose serializer fails with something that no database takes."""

    @pydantic.model_serializer
    def fail(self) -> dict[str, Any]:
        raise ValueError(UGLY)


class Hopeless(pydantic.BaseModel):
    @pydantic.model_serializer
    def fail(self) -> dict[str, Any]:
        raise SystemExit


UNUSABLE: dict[str, Any] = {
    "NaN": float("nan"),
    "NUL": "a\0b",
    "a lone surrogate": "\ud800",
    "an object": Odd(),
    "too much": "x" * (1024 * 1024),
    "more digits than can be read back": 10**5000,
    "a serializer that raises": Strange(),
    "a serializer that raises SystemExit": Hopeless(),
}


@pytest.mark.parametrize("value", UNUSABLE.values(), ids=UNUSABLE)
async def test_a_value_that_cannot_be_stored_fails_the_run_at_once(run: Any, value: Any) -> None:
    """Its side effects happened: running it again would help nobody."""

    def charge() -> Any:
        return value

    outcome = await run(charge)

    assert isinstance(outcome, Raised)
    assert (outcome.error_type, outcome.retryable) == ("InvalidReturnValue", False)
    assert storable(outcome)


async def test_a_value_of_the_largest_size_is_stored(run: Any) -> None:
    def charge() -> str:
        return "x" * (1024 * 1024 - 2)

    assert isinstance(await run(charge), Succeeded)


async def test_stored_arguments_that_do_not_fit_any_more_are_a_failure_that_is_retried(run: Any) -> None:
    """The signature has changed since; a deployment may change it back."""

    def charge(order_id: int, more: str) -> None:
        """Never called."""

    outcome = await run(charge, '{"order_id": "x"}')

    assert isinstance(outcome, Raised)
    assert (outcome.error_type, outcome.retryable) == ("InvalidArguments", True)
    assert "'order_id'" in outcome.error
    assert "'more' is missing" in outcome.error


def ugly(value: Any) -> Any:
    raise ValueError(UGLY)


def hopeless(value: Any) -> Any:
    raise SystemExit


async def test_what_a_validator_of_the_users_says_is_made_storable(run: Any) -> None:
    """Recording a failure must never fail."""

    def charge(order_id: Annotated[int, pydantic.AfterValidator(ugly)]) -> None:
        """Never called."""

    def refund(order_id: Annotated[int, pydantic.AfterValidator(hopeless)]) -> None:
        """Never called."""

    for function in (charge, refund):
        assert storable(await run(function, '{"order_id": 7}'))


async def test_what_does_not_fit_in_many_places_is_told_in_a_bounded_text(run: Any) -> None:
    def charge(numbers: list[int]) -> None:
        """Never called."""

    assert storable(await run(charge, json.dumps({"numbers": ["x"] * 5000})))


@pytest.mark.parametrize("message", [UGLY, "x" * 10**6, "é" * 10**6], ids=["ugly", "long", "long and wide"])
def test_a_progress_message_can_be_stored_whatever_it_says(message: str) -> None:
    """One that could not would keep the reports of a whole batch from being written."""
    signals = AttemptSignals()
    ctx = ActionCtx(
        run_id="r",
        attempt=1,
        max_attempts=1,
        database=None,
        signals=signals,
        mutate=lambda: None,  # type: ignore[arg-type]
    )

    ctx.progress(0.5, message)

    assert signals.progress is not None
    fraction, stored = signals.progress
    assert fraction == 0.5
    assert "\0" not in stored
    assert len(stored.encode()) <= LIMIT_BYTES
