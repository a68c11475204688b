"""PgQueuer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.errors import RetryRequested
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.peers.looking import any_left
from benchmarks.protocol import Peer, PlannedError, main, packed, tasks, unpacked

BATCH_SIZE = 500


class PgQueuerPeer(Peer):
    library = "pgqueuer"
    brings = ("asyncpg", "uvloop")
    imports = "import asyncpg, pgqueuer, pgqueuer.db, pgqueuer.queries"
    settings = {  # noqa: RUF012
        "driver": "AsyncpgDriver on uvloop, as its own command line does",
        "run": f"batch_size={BATCH_SIZE}, else defaults",
        "retry": "RetryRequested(delay=0)",
    }
    lacks = "keeps no result: a finished job's row is deleted; a late report is not fenced; asyncio only"

    def prepare(self, url: str) -> None:
        async def install() -> None:
            connection = await asyncpg.connect(url)
            queries = Queries(AsyncpgDriver(connection))
            if not await queries.schema_is_installed():
                await queries.install()
            await connection.close()

        asyncio.run(install())

    @contextlib.asynccontextmanager
    async def client(self, url: str) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(url)
        queries = Queries(AsyncpgDriver(connection))

        class Client:
            async def one(self, kind: str, value: int) -> None:
                await queries.enqueue(kind, packed(value))

            async def many(self, kind: str, values: list[int]) -> None:
                await queries.enqueue([kind] * len(values), [packed(value) for value in values], [0] * len(values))

        yield Client()
        await connection.close()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        uvloop.run(self._work(url, ready))

    async def _work(self, url: str, ready: Callable[[], None]) -> None:
        queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))

        @queuer.entrypoint("noop")
        async def noop(job: Job) -> None:
            tasks.noop()

        @queuer.entrypoint("fail_once")
        async def fail_once(job: Job) -> None:
            try:
                tasks.fail_once(unpacked(job.payload))
            except PlannedError as error:
                raise RetryRequested(delay=timedelta(0)) from error

        @queuer.entrypoint("stamp")
        async def stamp(job: Job) -> None:
            tasks.stamp(unpacked(job.payload))

        @queuer.entrypoint("hang")
        async def hang(job: Job) -> None:
            await tasks.hang()

        ready()
        await queuer.run(batch_size=BATCH_SIZE)

    def left(self, url: str) -> int:
        return any_left(url, "FROM pgqueuer")


if __name__ == "__main__":
    main(PgQueuerPeer)
