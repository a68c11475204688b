"""Run mutations: user code inside a database transaction, with a time limit."""

import asyncio
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from random import Random
from typing import Any, TypeVar

from ._clock import Clock
from ._contexts import MutationCtx
from ._functions import Mutation
from ._open_transactions import opened_here, refuse_inside_transaction
from ._policy import to_us
from ._registry import Registry
from ._threads import DaemonThreads
from .drivers import IDLE_S, Database, Transaction

T = TypeVar("T")

_THREADS = 16
_TRIES = 10  # of a transaction that others disturb
_SHORTEST_PAUSE_S = 0.002
_CANCEL_GRACE_S = 1.0
_LONGEST_IDLE_S = 2_000_000.0  # PostgreSQL counts milliseconds in 32 bits


class MutationTimeout(Exception):
    """A mutation outlasted its ``timeout_ms``; it was rolled back."""

    def __init__(self, mutation: Mutation[Any, Any]) -> None:
        super().__init__(f"mutation {mutation.name!r} took longer than timeout_ms={mutation.timeout_ms:g}: rolled back")


class Mutations:
    """Runs the mutations of one app, in a pool of threads of its own."""

    def __init__(self, database: Database, registry: Registry, clock: Clock, rng: Random) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._between = threading.Event()
        self._threads = DaemonThreads(_THREADS, "action-retrier-mutation")

    async def run(self, given: object, args: Mapping[str, Any] | None) -> Any:
        """Run a mutation in a transaction of its own and return what it returns."""
        mutation = self._registry.find_mutation(given)
        arguments = mutation.signature.check_arguments(args)
        refuse_inside_transaction(self._database.turn)
        return await self._run_async(mutation, arguments)

    def run_sync(self, given: object, args: Mapping[str, Any] | None) -> Any:
        """Run a mutation in a transaction of its own and return what it returns; blocks."""
        mutation = self._registry.find_mutation(given)
        arguments = mutation.signature.check_arguments(args)
        refuse_inside_transaction(self._database.turn)
        if mutation.signature.is_async:
            return run_in_loop(lambda: self._run_async(mutation, arguments))
        pauses_s = self._pauses_s()
        while True:
            try:
                with self._database.transaction_sync(mutation.isolation, idle_s=_idle_s(mutation)) as transaction:
                    return self._call_sync(transaction, mutation, arguments)
            except BaseException as error:
                pause_s = self._pause_after(error, pauses_s)
                if pause_s is None:
                    raise
            self._between.wait(pause_s)

    async def _run_async(self, mutation: Mutation[Any, Any], arguments: Mapping[str, Any]) -> Any:
        return await self.in_transaction(mutation, lambda transaction: self.call(transaction, mutation, arguments))

    async def in_transaction(self, mutation: Mutation[Any, Any], body: Callable[[Transaction], Awaitable[T]]) -> T:
        """
        Run *body* in a transaction such as *mutation* asks for.

        After a serialization failure or a deadlock it is run again, in another one.
        """
        pauses_s = self._pauses_s()
        while True:
            try:
                async with self._database.transaction(mutation.isolation, idle_s=_idle_s(mutation)) as transaction:
                    return await body(transaction)
            except BaseException as error:
                pause_s = self._pause_after(error, pauses_s)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    def _pauses_s(self) -> Iterator[float]:
        """Yield how long to wait after each try but the last one."""
        for tried in range(_TRIES - 1):
            yield _SHORTEST_PAUSE_S * 2**tried * self._rng.random()

    def _pause_after(self, error: BaseException, pauses_s: Iterator[float]) -> float | None:
        """Return how long to wait before it is done again; None if it is not."""
        return next(pauses_s, None) if self._database.is_transient(error) else None

    async def call(self, transaction: Transaction, mutation: Mutation[Any, Any], arguments: Mapping[str, Any]) -> Any:
        """
        Call *mutation* in an open transaction, whatever its colour.

        Raises:
            MutationTimeout: It took too long. If it does not react, the transaction is gone.
            RuntimeError: It tried to end the transaction.
        """
        ended = _Ended()
        async with transaction.user_code():
            task = asyncio.ensure_future(self._start(transaction, mutation, arguments, ended))
            try:
                in_time = await _wait(task, to_us(mutation.timeout_ms), self._clock)
            except asyncio.CancelledError:
                await self._stop(task, ended, transaction, mutation)
                raise
            if not in_time:
                await self._stop(task, ended, transaction, mutation)
                raise MutationTimeout(mutation)
            return ended.outcome()

    async def _start(
        self, transaction: Transaction, mutation: Mutation[Any, Any], arguments: Mapping[str, Any], ended: "_Ended"
    ) -> None:
        """Never raises: a SystemExit that leaves a task would end the event loop."""
        ctx = MutationCtx(transaction, self._database, "async" if mutation.signature.is_async else "sync")
        try:
            if mutation.signature.is_async:
                with opened_here(self._database.turn):
                    ended.value = await mutation.signature.call(ctx, arguments)
            else:
                threads = transaction.threads or self._threads
                ended.value = await threads.run(lambda: self._call_here(ctx, mutation, arguments))
        except BaseException as error:  # noqa: BLE001 - the mutation's own, raised again by `call`
            ended.fail(error)

    def _call_here(self, ctx: MutationCtx, mutation: Mutation[Any, Any], arguments: Mapping[str, Any]) -> Any:
        with opened_here(self._database.turn):
            return mutation.signature.call(ctx, arguments)

    @staticmethod
    async def _stop(
        task: asyncio.Future[None], ended: "_Ended", transaction: Transaction, mutation: Mutation[Any, Any]
    ) -> None:
        ended.forget()
        if not mutation.signature.is_async:
            transaction.abandon()
            return
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=_CANCEL_GRACE_S)
        if not done:
            transaction.abandon()
            # What it waited for fails now, and its client may be closing the connection: some hang when we do so, too.
            await asyncio.wait({task}, timeout=_CANCEL_GRACE_S)

    def _call_sync(self, transaction: Transaction, mutation: Mutation[Any, Any], arguments: Mapping[str, Any]) -> Any:
        ended = _Ended()
        done = threading.Event()
        ctx = MutationCtx(transaction, self._database, "sync")

        def work() -> None:
            try:
                ended.value = self._call_here(ctx, mutation, arguments)
            except BaseException as error:  # noqa: BLE001 - the mutation's own, raised again below
                ended.fail(error)
            done.set()

        with transaction.user_code_sync():
            begun_us = self._clock.monotonic_us()
            (transaction.threads or self._threads).submit(work)
            if not done.wait(min(mutation.timeout_ms / 1000, threading.TIMEOUT_MAX)):
                transaction.abandon()
                ended.forget()
                raise MutationTimeout(mutation)
            if self._clock.monotonic_us() - begun_us > mutation.timeout_ms * 1000:  # it ran in this very thread
                raise MutationTimeout(mutation)
            return ended.outcome()

    def close(self) -> None:
        """Let idle threads end."""
        self._threads.close()


def _idle_s(mutation: Mutation[Any, Any]) -> float:
    """Return how long a mutation may leave its transaction idle: its time limit is there to end it."""
    return min(mutation.timeout_ms / 1000 + IDLE_S, _LONGEST_IDLE_S)


class _Ended:
    """How a mutation ended."""

    def __init__(self) -> None:
        self.value: Any = None
        self._error: BaseException | None = None
        self._is_wanted = True

    def fail(self, error: BaseException) -> None:
        """It raised."""
        self._error = error
        if not self._is_wanted:
            self.forget()

    def forget(self) -> None:
        """Nobody wants to know: let go of what its frames hold. A cursor that is open keeps SQLite's write lock."""
        error, self._error, self._is_wanted = self._error, None, False
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__

    def outcome(self) -> Any:
        """Return what it returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self.value


async def _wait(task: asyncio.Future[None], limit_us: int, clock: Clock) -> bool:
    """Wait for *task*; False when it took longer than *limit_us*."""
    either: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ring(_: object = None) -> None:
        if not either.done():
            either.set_result(None)

    timer = clock.call_later(limit_us, ring)
    task.add_done_callback(ring)
    try:
        await either
    finally:
        timer.cancel()
        task.remove_done_callback(ring)
    return task.done()


def run_in_loop(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine from sync code, in a thread and on an event loop of its own, whatever runs in this one."""
    ended = _Ended()

    def work() -> None:
        try:
            ended.value = asyncio.run(make())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            ended.fail(error)

    thread = threading.Thread(target=work, name="action-retrier-loop", daemon=True)
    thread.start()
    thread.join()
    return ended.outcome()
