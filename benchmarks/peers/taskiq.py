"""Taskiq on Redis streams."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import redis
import uvloop
from taskiq import SmartRetryMiddleware
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from benchmarks.protocol import Peer, main, tasks

CONCURRENCY = 100
GROUP = "taskiq"


def make_broker(url: str) -> RedisStreamBroker:
    broker = RedisStreamBroker(url, consumer_id="0").with_middlewares(
        SmartRetryMiddleware(default_retry_count=5, default_delay=0)
    )

    @broker.task("noop")
    async def noop(value: int) -> None:
        tasks.noop()

    @broker.task("fail_once", retry_on_error=True)
    async def fail_once(value: int) -> None:
        tasks.fail_once(value)

    @broker.task("stamp")
    async def stamp(value: int) -> None:
        tasks.stamp(value)

    @broker.task("hang")
    async def hang(value: int) -> None:
        await tasks.hang()

    return broker


class Taskiq(Peer):
    library = "taskiq"
    brings = ("taskiq-redis", "redis", "uvloop")
    imports = "import taskiq, taskiq_redis"
    settings = {  # noqa: RUF012
        "broker": "RedisStreamBroker, no result backend",
        "worker": f"max_async_tasks={CONCURRENCY}, on uvloop, as its own command line does where that is there",
        "retry": "SmartRetryMiddleware(default_delay=0)",
    }
    lacks = "a dead worker's tasks are claimed 10 minutes later; keeps no result here; Redis may lose the last second"

    def prepare(self, url: str) -> None:
        async def declare() -> None:
            broker = make_broker(url)
            broker.is_worker_process = True
            await broker.startup()
            await broker.shutdown()

        uvloop.run(declare())

    @contextlib.asynccontextmanager
    async def client(self, url: str) -> AsyncIterator[Any]:
        broker = make_broker(url)

        class Client:
            async def one(self, kind: str, value: int) -> None:
                await broker.find_task(kind).kiq(value)

            async def many(self, kind: str, values: list[int]) -> None:
                for value in values:  # it has no call for many
                    await self.one(kind, value)

        await broker.startup()
        yield Client()
        await broker.shutdown()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        uvloop.run(self._work(url, ready))

    async def _work(self, url: str, ready: Callable[[], None]) -> None:
        broker = make_broker(url)
        broker.is_worker_process = True
        ready()
        await run_receiver_task(broker, max_async_tasks=CONCURRENCY, run_startup=True)

    def left(self, url: str) -> int:
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            (group,) = [one for one in client.xinfo_groups("taskiq") if one["name"] == GROUP.encode()]
            return int(group["pending"]) + int(group["lag"] or 0)


if __name__ == "__main__":
    main(Taskiq)
