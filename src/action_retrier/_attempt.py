"""Run one action once and say how it ended. No database here."""

from typing import Any

from pydantic_core import ValidationError

from ._codec import ERROR_LIMIT, RESULT_LIMIT, NotJSONError, check_size, clean_text, describe_exception, explain
from ._functions import Action
from ._lifecycle import Outcome, Raised, Succeeded
from ._threads import DaemonThreads
from .errors import NonRetryableError, PayloadTooLarge, RetryAfter


async def execute(action: Action[Any, Any, Any], args: str, ctx: object, threads: DaemonThreads) -> Outcome:
    """
    Call *action* with stored arguments and return how that ended, whatever the action does.

    Returns:
        `Succeeded` or `Raised`. Whoever told the attempt to stop knows better.
    """
    try:
        arguments = action.signature.decode_arguments(args)
    except ValidationError as error:
        # The signature has changed since the run was started. A deployment may change it back.
        problem = f"the stored arguments do not fit {action.name!r}: {explain(error)}"
        # What is no JSON is a damaged row, and no deployment will mend it.
        is_json = all(one["type"] != "json_invalid" for one in error.errors(include_input=False, include_context=False))
        return Raised("InvalidArguments", clean_text(problem, ERROR_LIMIT), retryable=is_json)
    except BaseException as error:  # noqa: BLE001 - a validator is user code
        return outcome_of(action, error)
    if not action.signature.is_async:
        return await threads.run(lambda: _call(action, arguments, ctx))
    try:
        value = await action.signature.call(ctx, arguments)
    except BaseException as error:  # noqa: BLE001 - the action call: whatever it raises is an outcome
        return outcome_of(action, error)
    return _returned(action, value)


def _call(action: Action[Any, Any, Any], arguments: dict[str, Any], ctx: object) -> Outcome:
    try:
        value = action.signature.call(ctx, arguments)
    except BaseException as error:  # noqa: BLE001 - the action call, in a thread
        return outcome_of(action, error)
    return _returned(action, value)


def _returned(action: Action[Any, Any, Any], value: object) -> Outcome:
    try:
        text = action.signature.encode_result(value)
        check_size(f"return value of {action.name!r}", RESULT_LIMIT, text)
    except NotJSONError as error:
        return _unusable(f"the return value of {action.name!r} cannot be stored: {error}")
    except PayloadTooLarge as error:
        return _unusable(error.message)
    except BaseException as error:  # noqa: BLE001 - a serializer is user code
        return _unusable(f"the return value of {action.name!r} cannot be stored: {type(error).__name__}")
    return Succeeded(text)


def _unusable(problem: str) -> Raised:
    # Its side effects have happened: running it again would help nobody.
    return Raised("InvalidReturnValue", clean_text(problem, ERROR_LIMIT), retryable=False)


def outcome_of(action: Action[Any, Any, Any], error: BaseException) -> Raised:
    """Turn what the action raised into an outcome."""
    told = error
    if isinstance(error, RetryAfter | NonRetryableError) and error.__cause__ is not None:
        told = error.__cause__
    error_type, message, traceback = describe_exception(told)
    if isinstance(error, RetryAfter):
        return Raised(error_type, message, traceback, retry_after_ms=_usable_delay_ms(error))
    retryable = not isinstance(error, NonRetryableError) and action.retries(error)
    return Raised(error_type, message, traceback, retryable=retryable)


def _usable_delay_ms(error: RetryAfter) -> float | None:
    """Return the delay that is asked for; None if a subclass, or somebody later, has set one that is none."""
    delay_ms: Any = getattr(error, "delay_ms", None)
    try:
        return RetryAfter(delay_ms).delay_ms  # which checks it
    except (TypeError, ValueError):
        return None
