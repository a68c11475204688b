"""One worker process: works until it is told to stop, and then ends, whatever its actions do."""

import asyncio
import json as jsonlib
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .._policy import to_us
from .._sessions import run_to_end
from .._worker import Worker
from ..app import App
from ..config import logger
from .loops import Loop, new_loop_of
from .orders import READY, Orders, leave, take_line
from .terminal import counted, say


class WorkerProcess:
    """The life of one worker process."""

    def __init__(
        self,
        app: App,
        *,
        concurrency: int,
        queues: list[str] | None,
        grace_ms: float,
        loop: Loop,
        json: bool,
        supervised: bool,
        told: bool,
    ) -> None:
        self._app = app
        self._session = app.worker(concurrency=concurrency, queues=queues, grace_ms=grace_ms)
        self._orders = Orders(to_us(grace_ms) / 1e6)
        self._concurrency = concurrency
        self._new_loop = new_loop_of(loop)
        self._queues = queues
        self._json = json
        self._told = told
        self._line = take_line() if supervised else None
        self._abandoned = 0

    def run(self) -> None:
        """Work until told to stop. Does not return if an action does not react to that."""
        run_to_end(self._live(), self._new_loop)
        if self._abandoned:
            # Everything is reported. The interpreter would wait for the event loop or for threads of the action.
            leave(0)
        self._orders.ended()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        worker = self._session.make()
        told = loop.create_future()

        def call(function: Callable[[], None]) -> Callable[[], None]:
            def call_soon() -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(function)

            return call_soon

        def stop() -> None:
            if not told.done():
                told.set_result(None)

        self._orders.listen(call(stop), call(worker.hurry), is_stopping=told.done)
        if self._line is not None:
            self._orders.listen_to(self._line)
        self._tell_of_database()
        starting = asyncio.ensure_future(worker.start())
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            leave(0)  # the database keeps it waiting, and nothing has begun
        await starting
        self._tell_of_readiness(worker)
        await told
        await worker.stop()
        self._abandoned = worker.abandoned

    def _tell_of_database(self) -> None:
        if self._told and not self._json:  # as JSON, every process is told of by itself
            return
        where = f"database: {self._app.location} (namespace {self._app.namespace})"
        self._tell("starting", where, database=self._app.location, namespace=self._app.namespace)

    def _tell_of_readiness(self, worker: Worker) -> None:
        registry = self._app._engine.registry  # noqa: SLF001 - one house
        queues = "all queues" if self._queues is None else f"queues {', '.join(self._queues)}"
        text = (
            f"worker process {os.getpid()} is ready: {counted(len(registry.actions), 'action')}, {queues}, "
            f"up to {self._concurrency} attempts at once"
        )
        details = {"worker": worker.id, "actions": sorted(registry.actions), "mutations": sorted(registry.mutations)}
        self._tell("ready", text, **details, queues=self._queues, concurrency=self._concurrency)
        if not registry.actions:
            logger.warning("this App has no actions: --import the modules that register them")
        if self._line is not None:
            with suppress(OSError):  # the supervisor has gone, and we are about to hear of it
                os.write(self._line, READY)

    def _tell(self, event: str, text: str, **details: Any) -> None:
        say(jsonlib.dumps({"event": event, "pid": os.getpid(), **details}) if self._json else text)
