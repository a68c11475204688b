"""The machine that histories are lived on does what it says: else they would prove something else."""

import asyncio
from random import Random
from typing import Any

import pytest

from .loop import Event, SimulatedLoop, Stuck
from .process import Process

HOUR_S = 3600.0
HALF_S = 0.5


@pytest.fixture
def loop() -> Any:
    loop = SimulatedLoop(Random(1))
    yield loop
    loop.close()


def test_an_hour_passes_at_once(loop: SimulatedLoop) -> None:
    loop.run_until_complete(asyncio.sleep(HOUR_S))

    assert HOUR_S <= loop.now_s < HOUR_S + 1


def test_nothing_of_a_dead_process_ever_runs_again(loop: SimulatedLoop) -> None:
    told: list[str] = []
    process = Process(loop, "victim", 1)

    async def victim() -> None:
        try:
            loop.call_later(1, told.append, "timer")
            await asyncio.to_thread(loop.block, 2)
            told.append("task")
        finally:
            told.append("finally")

    async def live() -> None:
        process.spawn(victim())
        await asyncio.sleep(HALF_S)
        process.die()
        await asyncio.sleep(HOUR_S)
        assert told == []

    loop.run_until_complete(live())


def test_a_stopped_process_goes_on_where_it_was_and_its_timers_are_late(loop: SimulatedLoop) -> None:
    process = Process(loop, "stopped", 1)

    async def work() -> float:
        process.freeze(10)
        await asyncio.sleep(2 * HALF_S)
        return loop.now_s

    async def live() -> float:
        return await process.spawn(work())

    assert 10 <= loop.run_until_complete(live()) < 11


def test_threads_go_on_while_their_event_loop_is_blocked(loop: SimulatedLoop) -> None:
    process = Process(loop, "blocked", 1)
    beats: list[float] = []
    stop = Event()

    def beat() -> None:
        while not stop.wait(3):
            beats.append(loop.now_s)

    async def work() -> float:
        loop.start_thread(beat)
        process.block(10)
        await asyncio.sleep(0)
        stop.set()
        return loop.now_s

    async def live() -> float:
        return await process.spawn(work())

    assert loop.run_until_complete(live()) >= 10
    assert len(beats) == 3


def test_within_a_process_the_order_is_asyncios_and_between_processes_any(loop: SimulatedLoop) -> None:
    order: list[str] = []
    processes = [Process(loop, name, 1) for name in "ab"]

    async def live() -> None:
        for process in processes:
            for number in range(5):
                loop.call_on(process.lane, 0, order.append, f"{process}{number}")
        await asyncio.sleep(HOUR_S)

    loop.run_until_complete(live())

    for process in processes:
        own = [one for one in order if one.startswith(process.name)]
        assert own == sorted(own)
    assert order != sorted(order), "they took turns"


def test_clocks_of_processes_disagree(loop: SimulatedLoop) -> None:
    fast = Process(loop, "fast", 1, rate=2.0, offset_s=100.0, skew_s=-5.0)

    async def work() -> tuple[float, float]:
        began_s = loop.time()
        await asyncio.sleep(HOUR_S)
        return began_s, loop.time()

    async def live() -> tuple[float, float]:
        return await fast.spawn(work())

    began_s, ended_s = loop.run_until_complete(live())
    assert began_s == pytest.approx(100, abs=1)
    assert ended_s == pytest.approx(100 + HOUR_S, abs=1)
    assert loop.now_s == pytest.approx(HOUR_S / 2, abs=1)


def test_a_wait_for_nothing_is_an_error(loop: SimulatedLoop) -> None:
    async def live() -> None:
        await loop.create_future()

    with pytest.raises(Stuck):
        loop.run_until_complete(live())
