"""Calls that are not cut short, however often whoever made them is canceled."""

import asyncio

import pytest

from action_retrier.drivers.cancellation import Undivided

LIMIT_S = 30


@pytest.mark.parametrize("times", [1, 3])
async def test_a_call_that_is_canceled_again_and_again_ends_by_itself(times: int) -> None:
    """As anyio does it: what the call has begun on the connection is ended first."""
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), []

    async def exchange() -> None:
        begun.set()
        await may_end.wait()
        ended.append(1)

    undivided = Undivided()
    task = asyncio.create_task(undivided.run(exchange()))
    await asyncio.wait_for(begun.wait(), LIMIT_S)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, LIMIT_S)
    assert ended == [1]
    with pytest.raises(asyncio.CancelledError):  # and of what it would have gone on with, nothing is done
        undivided.go_on()
