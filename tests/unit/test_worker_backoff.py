"""How long a part of the worker waits after an error, before it tries again."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from action_retrier import DatabaseUnavailable, _worker
from action_retrier._worker import Worker


class Part:
    """A part of a worker that fails again and again, each time after so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *takes_s: float) -> None:
        self._now_s = 0.0
        self._takes_s = list(takes_s)
        self.waits_s: list[float] = []
        self._worker: Any = Worker.__new__(Worker)
        self._worker._loop = SimpleNamespace(time=lambda: self._now_s)
        self._worker._engine = SimpleNamespace(rng=SimpleNamespace(random=lambda: 0.5))
        monkeypatch.setattr(_worker.asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)

    async def _fail(self) -> None:
        if not self._takes_s:
            raise asyncio.CancelledError
        self._now_s += self._takes_s.pop(0)
        raise DatabaseUnavailable(problem="the server is away", remedy="wait")

    async def run(self) -> list[float]:
        with pytest.raises(asyncio.CancelledError):
            await self._worker._forever("part", self._fail)
        return self.waits_s


async def test_what_fails_at_once_is_tried_again_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    waits_s = await Part(monkeypatch, *[0.0] * 9).run()

    assert waits_s == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


async def test_what_has_waited_for_the_database_already_is_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage of minutes work goes on as soon as the server is back, and not when a pause has ended."""
    waits_s = await Part(monkeypatch, *[0.0] * 6, *[30.0] * 3).run()

    assert waits_s[6:] == [0.05, 0.05, 0.05]
