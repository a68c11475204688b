"""Procrastinate."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from procrastinate import App, PsycopgConnector, RetryStrategy

from benchmarks.peers.looking import any_left
from benchmarks.protocol import Peer, main, tasks

CONCURRENCY = 50
POOL = 10


def make_app(url: str) -> App:
    app = App(connector=PsycopgConnector(conninfo=url, min_size=1, max_size=POOL))

    @app.task(name="noop")
    async def noop(value: int) -> None:
        tasks.noop()

    @app.task(name="fail_once", retry=RetryStrategy(max_attempts=5, wait=0))
    async def fail_once(value: int) -> None:
        tasks.fail_once(value)

    @app.task(name="stamp")
    async def stamp(value: int) -> None:
        tasks.stamp(value)

    @app.task(name="hang", retry=RetryStrategy(max_attempts=5, wait=0))
    async def hang(value: int) -> None:
        await tasks.hang()

    return app


class Procrastinate(Peer):
    library = "procrastinate"
    brings = ("psycopg",)
    imports = "import procrastinate"
    settings = {  # noqa: RUF012
        "connector": f"PsycopgConnector, pool of up to {POOL}",
        "worker": f"concurrency={CONCURRENCY}, LISTEN, else defaults",
        "retry": "RetryStrategy(wait=0)",
    }
    lacks = (
        "jobs of a dead worker stay in `doing` until a task of the user's re-queues them; a late report is not fenced"
    )

    def prepare(self, url: str) -> None:
        async def install() -> None:
            app = make_app(url)
            async with app.open_async():
                if not await app.check_connection_async():
                    await app.schema_manager.apply_schema_async()

        asyncio.run(install())

    @contextlib.asynccontextmanager
    async def client(self, url: str) -> AsyncIterator[Any]:
        app = make_app(url)

        class Client:
            async def one(self, kind: str, value: int) -> None:
                await app.tasks[kind].defer_async(value=value)

            async def many(self, kind: str, values: list[int]) -> None:
                await app.tasks[kind].batch_defer_async(*[{"value": value} for value in values])

        async with app.open_async():
            yield Client()

    async def work(self, url: str, ready: Callable[[], None]) -> None:
        app = make_app(url)
        async with app.open_async():
            ready()
            await app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)

    def left(self, url: str) -> int:
        return any_left(url, "FROM procrastinate_jobs WHERE status IN ('todo', 'doing')")


if __name__ == "__main__":
    main(Procrastinate)
