"""What tests of waiting for the writing connection share."""

import asyncio
from collections.abc import Callable
from typing import Any

from action_retrier._ops.control import load_status
from action_retrier._ops.starts import start_runs
from action_retrier._statements import Op
from action_retrier.errors import RunNotFound

from ..stores import LIMIT_S, NAMESPACE, Store, in_thread, until

SHORT_S = 0.05
"""A patience that runs out while a test looks on."""


def start(store: Store) -> tuple[str, Callable[[], Op[Any]]]:
    one = store.starting()
    return one.id, lambda: start_runs(NAMESPACE, [one])


def exists(store: Store, run_id: str) -> bool:
    try:
        store.read(load_status, NAMESPACE, run_id)
    except RunNotFound:
        return False
    return True


def works(store: Store) -> bool:
    """Tell whether the next write is done as ever."""
    return in_thread(store.start).result(LIMIT_S) is not None


async def in_time(awaitable: Any) -> Any:
    async with asyncio.timeout(LIMIT_S):
        return await awaitable


async def until_async(is_true: Callable[[], bool]) -> None:
    await in_time(asyncio.to_thread(until, is_true))


def taken(store: Store) -> bool:
    """Tell whether the writing thread has taken up all that was queued."""
    return store.system.waiting(store.database) == 0
