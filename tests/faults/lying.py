"""A database that fails one call in ten: before it is done, or after, and says the same of both; or it takes its time."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Any

from action_retrier._statements import Op
from action_retrier.drivers import Database
from action_retrier.errors import DatabaseUnavailable

_LONGEST_S = 0.03


class Lie(DatabaseUnavailable):
    """What the caller of a call that was lied about is told."""

    def __init__(self) -> None:
        super().__init__(problem="the answer is a lie", remedy="do it again")


class LyingDatabase:
    """Stands between the library and a real database. What is not about data is passed on."""

    def __init__(self, database: Database, rng: Random, share: float = 0.1) -> None:
        self._database = database
        self._rng = rng
        self._share = share
        self.told: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def be_honest(self) -> None:
        """Tell no lies from now on."""
        self._share = 0.0

    def _choose(self) -> str:
        if self._rng.random() >= self._share:
            return "nothing"
        lie = self._rng.choice(["before", "after", "late"])
        self.told[lie] += 1
        return lie

    async def _around(self, call: Callable[[], Any]) -> Any:
        lie = self._choose()
        if lie == "before":
            raise Lie
        if lie == "late":
            await asyncio.sleep(_LONGEST_S * self._rng.random())
        result = await call()
        if lie == "after":
            raise Lie
        return result

    def _around_sync(self, call: Callable[[], Any]) -> Any:
        lie = self._choose()
        if lie == "before":
            raise Lie
        if lie == "late":
            time.sleep(_LONGEST_S * self._rng.random())  # in a thread that may block
        result = call()
        if lie == "after":
            raise Lie
        return result

    async def read(self, make: Callable[[], Op[Any]]) -> Any:
        return await self._around(lambda: self._database.read(make))

    def read_sync(self, make: Callable[[], Op[Any]]) -> Any:
        return self._around_sync(lambda: self._database.read_sync(make))

    async def write(self, make: Callable[[], Op[Any]], **options: Any) -> Any:
        return await self._around(lambda: self._database.write(make, **options))

    def write_sync(self, make: Callable[[], Op[Any]], **options: Any) -> Any:
        return self._around_sync(lambda: self._database.write_sync(make, **options))

    @contextlib.asynccontextmanager
    async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        lie = self._choose()
        if lie == "before":
            raise Lie
        async with self._database.transaction(*args, **options) as transaction:
            if lie == "late":
                await asyncio.sleep(_LONGEST_S * self._rng.random())
            yield transaction
        if lie == "after":
            raise Lie

    @contextlib.contextmanager
    def transaction_sync(self, *args: Any, **options: Any) -> Iterator[Any]:
        lie = self._choose()
        if lie == "before":
            raise Lie
        with self._database.transaction_sync(*args, **options) as transaction:
            yield transaction
        if lie == "after":
            raise Lie
