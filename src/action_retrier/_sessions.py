"""Transactions and workers as context managers, in both colours; and a worker that lives until a signal."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._contexts import MutationCtx
from ._open_transactions import opened_here, refuse_inside_transaction, refuse_worker_inside_transaction
from ._worker import Engine, Worker
from .config import logger
from .drivers import Colour, Database
from .errors import InvalidContext

A = TypeVar("A")
S = TypeVar("S")
_IDLE_S = 60.0  # a user's block: nobody limits its time
_Raised = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


class _BothColours(Generic[A, S]):
    """A context manager for ``async with`` and for ``with``."""

    _entered_async: contextlib.AbstractAsyncContextManager[A]
    _entered: contextlib.AbstractContextManager[S]

    def _open(self) -> contextlib.AbstractAsyncContextManager[A]:
        raise NotImplementedError  # pragma: no cover - each has its own

    def _open_sync(self) -> contextlib.AbstractContextManager[S]:
        raise NotImplementedError  # pragma: no cover - each has its own

    async def __aenter__(self) -> A:
        self._entered_async = self._open()
        return await self._entered_async.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._entered_async.__aexit__(kind, error, trace)

    def __enter__(self) -> S:
        self._entered = self._open_sync()
        return self._entered.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._entered.__exit__(kind, error, trace)


class AppTransaction(_BothColours[MutationCtx, MutationCtx]):
    """``app.transaction()``: commits on exit, rolls back on error."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[MutationCtx]:
        self._check_colour("async", "with app.transaction()")
        refuse_inside_transaction(self._database.turn)
        async with self._database.transaction(idle_s=_IDLE_S) as transaction:
            with opened_here(self._database.turn):
                async with transaction.user_code():
                    yield MutationCtx(transaction, self._database, "async")

    @contextlib.contextmanager
    def _open_sync(self) -> Iterator[MutationCtx]:
        self._check_colour("sync", "async with app.transaction()")
        refuse_inside_transaction(self._database.turn)
        with (
            self._database.transaction_sync(idle_s=_IDLE_S) as transaction,
            opened_here(self._database.turn),
            transaction.user_code_sync(),
        ):
            yield MutationCtx(transaction, self._database, "sync")

    def _check_colour(self, colour: Colour, other: str) -> None:
        if colour not in self._database.mutation_colours:
            raise InvalidContext(
                problem=f"this app's database cannot serve {'an' if colour == 'async' else 'a'} {colour} transaction",
                remedy=f"use {other}",
            )


class SyncWorker:
    """A worker that runs on an event loop in a thread of its own, for programs without one."""

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self._worker = worker
        self._loop = loop

    @property
    def id(self) -> str:
        """The id of this incarnation."""
        return self._worker.id

    def until_idle(self) -> None:
        """Return when nothing that this worker can run, or call back, is due or under way."""
        if not self._loop.is_closed():  # with it the worker has stopped
            asyncio.run_coroutine_threadsafe(self._worker.until_idle(), self._loop).result()


class AppWorker(_BothColours[Worker, SyncWorker]):
    """``app.worker()``: a worker in this process, which drains on exit."""

    def __init__(self, engine: Engine, concurrency: int, queues: list[str] | None, grace_ms: float) -> None:
        self._engine = engine
        self._concurrency = concurrency
        self._queues = queues
        self._grace_ms = grace_ms

    def make(self) -> Worker:
        """
        Make the worker, which is not started yet, in the task or thread that is going to wait for it.

        Raises:
            InvalidContext: A transaction on the same database is open there.
        """
        refuse_worker_inside_transaction(self._engine.database.turn)
        return Worker(self._engine, concurrency=self._concurrency, queues=self._queues, grace_ms=self._grace_ms)

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Worker]:
        worker = self.make()
        await worker.start()
        try:
            yield worker
        except BaseException:
            # The program is failing, or being canceled: it has no time to give.
            worker.hurry()
            await worker.stop()
            raise
        await worker.stop()

    @contextlib.contextmanager
    def _open_sync(self) -> Iterator[SyncWorker]:
        started: Future[tuple[Worker, asyncio.AbstractEventLoop, Callable[..., None]]] = Future()
        thread = threading.Thread(
            target=_run_in_thread, args=(self.make(), started), name="action-retrier-worker", daemon=True
        )
        thread.start()
        worker, loop, end = started.result()
        try:
            yield SyncWorker(worker, loop)
        except BaseException:
            end(in_a_hurry=True)
            thread.join()
            raise
        end()
        thread.join()


def _run_in_thread(worker: Worker, started: "Future[Any]") -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        ending = asyncio.Event()
        try:
            await worker.start()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits for the start
            started.set_exception(error)
            return

        def end(*, in_a_hurry: bool = False) -> None:
            if in_a_hurry:
                loop.call_soon_threadsafe(worker.hurry)
            loop.call_soon_threadsafe(ending.set)

        started.set_result((worker, loop, end))
        await ending.wait()
        await worker.stop()

    run_to_end(live())


def run_to_end(main: Any, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop) -> None:
    """
    Run a coroutine on an event loop of its own.

    Unlike ``asyncio.run`` it does not wait for tasks that swallow their cancellation: an action
    that does must not keep the process from ending.
    """
    loop = new_loop()
    try:
        loop.run_until_complete(main)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        if not asyncio.all_tasks(loop):
            loop.close()


async def run_until_signal(worker: Worker) -> None:
    """Run *worker* until SIGTERM or SIGINT, then drain it; a second signal ends the grace time."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def on_signal(name: str) -> None:
        if told.is_set():
            logger.warning("%s again: the grace time ends now", name)
            worker.hurry()
        else:
            logger.info("%s: stopping", name)
            told.set()

    handled = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # Outside the main thread there are no signals to handle: whoever started us stops us.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            before = signal.getsignal(number)
            loop.add_signal_handler(number, on_signal, signal.Signals(number).name)
            handled.append((number, before))
    try:
        await worker.start()
        try:
            await told.wait()
        except asyncio.CancelledError:
            worker.hurry()
            await worker.stop()
            raise
        await worker.stop()
    finally:
        for number, before in handled:
            loop.remove_signal_handler(number)
            signal.signal(number, before)
