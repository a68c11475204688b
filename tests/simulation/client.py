"""A program that starts runs, asks after them, and changes its mind, whatever happens to its database."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from action_retrier import Call, RunInProgress, RunNotFound, RunSucceeded
from action_retrier.errors import DatabaseUnavailable

from .program import LONG_S, Machine

if TYPE_CHECKING:
    from .world import World


class Client:
    """Starts runs, asks after them, and changes its mind."""

    def __init__(self, world: "World", machine: Machine) -> None:
        self.world = world
        self.oracle = world.oracle
        self.app = machine.app
        self.process = machine.process
        self.rng = machine.process.rng
        self.retrier = machine.retrier
        self._keys: dict[str, tuple[str, dict[str, Any]]] = {}

    async def live(self) -> None:
        for number in range(self.rng.randint(4, 12)):
            await asyncio.sleep(self.rng.expovariate(1.0))
            runs = sorted(self.oracle.known)
            if number < 3 or not runs or self.rng.random() < 0.35:
                await self._starting()
            else:
                await self._steer(self.rng.choice(runs))

    async def _told(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Call until there is an answer."""
        while True:
            try:
                return await call()
            except DatabaseUnavailable:
                await asyncio.sleep(0.2 + self.rng.random())

    def _plan(self) -> dict[str, Any]:
        rng = self.rng
        return {
            "takes": rng.choice([0, rng.uniform(0, 0.5), rng.uniform(0, 4), rng.uniform(0, self.world.longest_s)]),
            "fails": rng.choice([0, 0, 0, 1, 2, 9]),
            "how": rng.choice(["raise", "raise", "later", "never", "cancel"]),
            "kills": rng.choice([0] * 12 + [1, 9]),
            "blocks": rng.choice([0] * 20 + [3, 12]),
            "freezes": rng.choice([0] * 12 + [rng.uniform(10.5, 14)]),
            "stays": rng.choice([0] * 8 + [0.5, 3]),
            "mutates": rng.random() < 0.2,
        }

    def _options(self) -> dict[str, Any]:
        rng = self.rng
        return {
            "on_complete": rng.choice([None, "done", "done", "shared", "shared", "threaded"]),
            "context": {
                "fails": rng.choice([0, 0, 0, 1, 2]),
                "kills": rng.choice([0] * 15 + [1, 2]),
                "takes": rng.choice([0, 0, 0.05, rng.choice([0.0, LONG_S])]),
            },
            "max_failures": rng.choice([0, 1, 2, 3]),
            "priority": rng.choice([0, 0, 1]),
            "attempt_timeout_ms": rng.choice([None, None, None, 1000]),
            "deadline_ms": rng.choice([None, None, None, None, 3000]),
            "queue": rng.choice(["default", "default", "default", "mail"]),
        }

    async def _starting(self) -> None:
        rng = self.rng
        action = rng.choice(["work", "work", "work", "thread"])
        args, options = {"plan": self._plan()}, self._options()
        start = rng.choice(
            [self._with_key, self._with_key, self._plainly, self._later, self._in_transaction, self._many]
        )
        with contextlib.suppress(DatabaseUnavailable):  # it may have started all the same
            await start(action, args, options)

    async def _with_key(self, action: str, args: dict[str, Any], options: dict[str, Any]) -> None:
        """Again and again, until there is an answer: it starts once."""
        key = f"{self.process}-{self.rng.randint(1, 4)}"
        action, args = self._keys.setdefault(key, (action, args))

        async def start() -> str:
            return await self.retrier.run(self.app, action, args, idempotency_key=key, **options)

        run_id = await self._told(start)
        self.oracle.told_key(f"{action} {key}", run_id)
        self._knows(run_id)

    async def _plainly(self, action: str, args: dict[str, Any], options: dict[str, Any]) -> None:
        self._knows(await self.retrier.run(self.app, action, args, **options))

    async def _later(self, action: str, args: dict[str, Any], options: dict[str, Any]) -> None:
        self._knows(await self.retrier.run_after(self.app, self.rng.uniform(0, 5000), action, args, **options))

    async def _many(self, action: str, args: dict[str, Any], options: dict[str, Any]) -> None:
        for run_id in await self.retrier.run_many(self.app, [Call(action, args, **options) for _ in range(3)]):
            self._knows(run_id)

    async def _in_transaction(self, action: str, args: dict[str, Any], options: dict[str, Any]) -> None:
        """I6: what is rolled back never was."""
        commits = self.rng.random() < 0.5
        with contextlib.suppress(ZeroDivisionError):
            async with self.app.transaction() as ctx:
                run_id = await self.retrier.run(ctx, action, args, **options)
                await asyncio.sleep(0.02 * self.rng.random())
                if not commits:
                    self.oracle.forbidden.add(run_id)
                    raise ZeroDivisionError
            self._knows(run_id)

    def _knows(self, run_id: str) -> None:
        self.oracle.note(self.process, f"started {run_id[-6:]}")
        self.oracle.known.add(run_id)

    async def _steer(self, run_id: str) -> None:
        ways = [self._cancel, self._cancel, self._ask, self._wait, self._retry, self._retry, self._clean_up, self._bulk]
        steer = self.rng.choice(ways)
        self.oracle.note(self.process, f"{steer.__name__} {run_id[-6:]}")
        try:
            await steer(run_id)
        except RunNotFound:
            self.oracle.told_missing(run_id)
        except (RunInProgress, RunSucceeded, DatabaseUnavailable):
            pass

    async def _cancel(self, run_id: str) -> None:
        if await self.retrier.cancel(self.app, run_id):
            self.oracle.told_canceled(run_id)
        else:
            self.oracle.told_not_canceled(run_id)

    async def _ask(self, run_id: str) -> None:
        seen, canceled = len(self.oracle.results[run_id]), self.oracle.canceled.get(run_id)
        self.oracle.told_status(run_id, await self.retrier.status(self.app, run_id), seen, canceled)

    async def _wait(self, run_id: str) -> None:
        with contextlib.suppress(TimeoutError):
            self.oracle.told_result(run_id, await self.retrier.wait(self.app, run_id, timeout_ms=3000))

    async def _retry(self, run_id: str) -> None:
        self.oracle.retries_asked[run_id] += 1
        await self.retrier.retry(self.app, run_id)

    async def _clean_up(self, run_id: str) -> None:
        discard = self.rng.random() < 0.2
        if discard:
            self.oracle.discards_asked.add(run_id)
        self.oracle.cleanups_asked.add(run_id)
        await self.retrier.cleanup(self.app, run_id, discard_callback=discard)

    async def _bulk(self, _: str) -> None:
        if self.rng.random() < 0.5:
            await self.retrier.cancel_all(self.app, queue="mail")
            return
        self.oracle.bulk_retries_asked += 1
        await self.retrier.retry_all(self.app, queue="mail")
