"""Oban for Python."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvloop
from oban import Oban, worker
from oban.schema import install
from psycopg_pool import AsyncConnectionPool

from benchmarks.peers.looking import any_left
from benchmarks.protocol import Peer, main, tasks

LIMIT = 1000
POOL = 10


@worker(queue="default")
class Noop:
    async def process(self, job: Any) -> None:
        tasks.noop()


@worker(queue="default", max_attempts=5)
class FailOnce:
    async def process(self, job: Any) -> None:
        tasks.fail_once(job.args["value"])

    def backoff(self, job: Any) -> int:
        return 0


@worker(queue="default")
class Stamp:
    async def process(self, job: Any) -> None:
        tasks.stamp(job.args["value"])


@worker(queue="default", max_attempts=5)
class Hang:
    async def process(self, job: Any) -> None:
        await tasks.hang()

    def backoff(self, job: Any) -> int:
        return 0


KINDS: dict[str, Any] = {"noop": Noop, "fail_once": FailOnce, "stamp": Stamp, "hang": Hang}


class ObanPeer(Peer):
    library = "oban"
    brings = ("psycopg", "psycopg-pool", "uvloop")
    imports = "import oban"
    settings = {  # noqa: RUF012
        "pool": f"up to {POOL} connections",
        "queue": f"limit={LIMIT}, else defaults",
        "loop": "uvloop, which it brings",
        "retry": "backoff 0; what is due again is looked for each second (its default)",
    }
    lacks = "a dead worker's jobs are rescued 5 to 6 minutes later, healthy long ones too; a late report is not fenced"

    def prepare(self, url: str) -> None:
        async def create() -> None:
            async with AsyncConnectionPool(url, min_size=1, max_size=1) as pool:
                async with pool.connection() as connection:
                    row = await (await connection.execute("SELECT to_regclass('oban_jobs')")).fetchone()
                if row is None or row[0] is None:
                    await install(pool)

        asyncio.run(create())

    @contextlib.asynccontextmanager
    async def client(self, url: str) -> AsyncIterator[Any]:
        class Client:
            async def one(self, kind: str, value: int) -> None:
                await oban.enqueue(KINDS[kind].new({"value": value}))

            async def many(self, kind: str, values: list[int]) -> None:
                await oban.enqueue_many([KINDS[kind].new({"value": value}) for value in values])

        async with AsyncConnectionPool(url, min_size=1, max_size=POOL) as pool:
            oban = Oban(pool=pool)
            async with oban:
                yield Client()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        uvloop.run(self._work(url, ready))

    async def _work(self, url: str, ready: Callable[[], None]) -> None:
        async with AsyncConnectionPool(url, min_size=1, max_size=POOL) as pool:
            ready()
            async with Oban(pool=pool, queues={"default": LIMIT}):
                await asyncio.Event().wait()

    def left(self, url: str) -> int:
        return any_left(url, "FROM oban_jobs WHERE state IN ('available', 'scheduled', 'executing', 'retryable')")


if __name__ == "__main__":
    main(ObanPeer)
