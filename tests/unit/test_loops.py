"""What event loops have in common, where they differ."""

import asyncio
import time

import pytest
import uvloop

from action_retrier._clock import loop_time_s

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def runner(request):
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


def test_the_time_goes_on_while_a_call_blocks_the_loop(runner):
    """By the time of uvloop a suspect that is begun after such a call would have had its probation already."""

    async def block() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        began_s, until_s = loop_time_s(loop), time.monotonic() + 0.05
        while time.monotonic() < until_s:
            pass
        return loop_time_s(loop) - began_s

    assert runner.run(block()) > 0.045
