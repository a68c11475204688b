"""Absurd."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
from absurd_sdk import AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL

from benchmarks.peers.looking import any_left
from benchmarks.protocol import Peer, main, tasks

CONCURRENCY = 100
POLL_S = 0.25
QUEUE = "bench"


def make_app(connection: Any) -> AsyncAbsurd:
    app = AsyncAbsurd(connection, queue_name=QUEUE)

    @app.register_task("noop")
    async def noop(params: Any, ctx: Any) -> None:
        tasks.noop()

    @app.register_task("fail_once", default_max_attempts=5)
    async def fail_once(params: Any, ctx: Any) -> None:
        tasks.fail_once(params["value"])

    @app.register_task("stamp")
    async def stamp(params: Any, ctx: Any) -> None:
        tasks.stamp(params["value"])

    @app.register_task("hang", default_max_attempts=5)
    async def hang(params: Any, ctx: Any) -> None:
        await tasks.hang()

    return app


class Absurd(Peer):
    library = "absurd-sdk"
    brings = ("absurdctl", "psycopg")
    imports = "import absurd_sdk"
    settings = {  # noqa: RUF012
        "worker": f"AsyncAbsurd, concurrency={CONCURRENCY}, poll_interval={POLL_S} (its default)",
        "retry": "no delay",
        "many": "spawned one by one in one transaction: it has no call for many",
    }
    lacks = "polls: an idle worker looks four times a second; waits for a whole batch before it claims another"

    def prepare(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            if connection.execute("SELECT to_regnamespace('absurd')").fetchone() == (None,):
                connection.execute(BUNDLED_SCHEMA_SQL)
            connection.execute("SELECT absurd.create_queue(%s)", (QUEUE,))

    @contextlib.asynccontextmanager
    async def client(self, url: str) -> AsyncIterator[Any]:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            app = make_app(connection)

            class Client:
                async def one(self, kind: str, value: int) -> None:
                    await app.spawn(kind, {"value": value}, retry_strategy={"kind": "none"})

                async def many(self, kind: str, values: list[int]) -> None:
                    async with connection.transaction():
                        for value in values:
                            await self.one(kind, value)

            yield Client()

    async def work(self, url: str, ready: Callable[[], None]) -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            app = make_app(connection)
            ready()
            await app.start_worker(concurrency=CONCURRENCY, poll_interval=POLL_S)

    def left(self, url: str) -> int:
        return any_left(url, f"FROM absurd.t_{QUEUE} WHERE state IN ('pending', 'running', 'sleeping')")


if __name__ == "__main__":
    main(Absurd)
