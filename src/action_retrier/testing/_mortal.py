"""Workers that are processes of their own, as far as a test is concerned, and may die as such."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._statements import Op
from .._worker import Worker
from ..app import App
from ..config import logger
from ._watch import Watch


class SimulatedCrash(BaseException):
    """What code sees whose process, in the test's story, is dead. It is no Exception: nobody should handle it."""


class MortalProcess:
    """A worker as a process of its own: what runs in its context lives and dies with it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.is_dead = False
        self.ids: set[str] = set()
        self.burial: asyncio.Task[None] | None = None
        self.buried = asyncio.Event()

    def die(self, point: str) -> None:
        """From here on nothing of it has any effect."""
        if not self.is_dead:
            logger.warning("worker %s dies, by a test, at %s", self.worker.id or "that begins", point)
            logger.addFilter(_is_alive)  # for good, and only once: threads of the dead go on
            self.is_dead = True
            _dead.update(self.ids)
            loop: asyncio.AbstractEventLoop = self.worker._loop
            loop.call_soon_threadsafe(self._bury)

    def _bury(self) -> None:
        self.burial = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        """Stop what can be stopped, as the end of a process would: nothing is reported, given back or signed off."""
        worker = self.worker
        worker._stopping = True
        tasks: list[asyncio.Task[Any]] = list(worker._tasks)
        for execution in worker._executions._by_key.values():
            execution.reported = True
            execution.signals.stop_reason = "lease_lost"
            if execution.task is not None:
                tasks.append(execution.task)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=_BURIAL_S)
                await asyncio.gather(*(task for task in tasks if task.done()), return_exceptions=True)
                worker._claiming.close()
            worker._executions.close()
            await asyncio.to_thread(worker._incarnation.end)
        finally:
            worker._stopped = True
            worker._claiming.tell_of_the_end()
            self.buried.set()


_BURIAL_S = 5.0
current: contextvars.ContextVar[MortalProcess | None] = contextvars.ContextVar(
    "action_retrier_testing_process", default=None
)
_dead: set[str] = set()
"""Ids of workers that have died in this process: whoever looks need not wait until it shows."""


@contextlib.contextmanager
def without_the_dead(app: App) -> Iterator[None]:
    """
    Refuse what threads of dead workers want.

    The outermost block does so, beneath whatever the others shadow, and for good once somebody has died in it: such
    threads go on after it.
    """
    database: Any = app._database
    if getattr(database, "_refuses_the_dead", False):
        yield
        return
    dead = len(_dead)
    watch = Watch(app, lambda _step, _moment: None, refuse_the_dead)
    watch.install(only_database=True)
    database._refuses_the_dead = True
    try:
        yield
    finally:
        if len(_dead) == dead:
            watch.remove()
            del database._refuses_the_dead


def refuse_the_dead() -> None:
    process = current.get()
    if process is not None and process.is_dead:
        raise SimulatedCrash("its process is dead")


def _is_alive(_record: logging.LogRecord) -> bool:
    """Let nothing into the log of what the code of a dead process makes of its death."""
    process = current.get()
    return process is None or not process.is_dead


def mortal(make_session: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes workers each of which is a process of its own."""

    def worker(**options: Any) -> Any:
        session = make_session(**options)
        make = session.make
        session.make = lambda: _as_process(make())
        return session

    return worker


def _as_process(worker: Worker) -> Worker:
    process = MortalProcess(worker)
    start, stop = worker.start, worker.stop

    async def start_in_process() -> None:
        worker._loop = asyncio.get_running_loop()
        try:
            await _run_in(process, start())
        except SimulatedCrash:
            await process.buried.wait()
            raise

    async def stop_in_process() -> None:
        if not process.is_dead:
            # It may die in this, too.
            with contextlib.suppress(SimulatedCrash):
                await _run_in(process, stop())
        if process.is_dead:
            await process.buried.wait()

    worker.start, worker.stop = start_in_process, stop_in_process  # type: ignore[method-assign]
    return worker


async def _run_in(process: MortalProcess, coroutine: Any) -> None:
    context = contextvars.copy_context()
    context.run(current.set, process)
    await asyncio.create_task(coroutine, context=context)


def watch_leases(watch: Watch, app: App) -> None:
    """Know whose lease it is; and let everybody know at once who has died here."""
    leases = app._database.leases
    owners: dict[str, MortalProcess] = {}

    def acquiring(original: Any) -> Any:
        def acquire(worker: str) -> None:
            process = current.get()
            if process is not None:
                owners[worker] = process
                process.ids.add(worker)
            original(worker)

        return acquire

    def renewing(original: Any) -> Any:
        def renew(worker: str) -> bool:
            before = current.set(owners.get(worker))  # the heartbeat has a thread of its own
            try:
                return bool(original(worker))
            except SimulatedCrash:
                return True
            finally:
                current.reset(before)

        return renew

    watch.shadow(leases, "acquire", acquiring)
    watch.shadow(leases, "renew", renewing)
    if "is_still_dead" not in vars(leases):  # this stays: somebody has to know the dead when the block has ended
        know_the_dead(leases)


def know_the_dead(leases: Any) -> None:
    dead, is_still_dead, release = leases.dead, leases.is_still_dead, leases.release

    async def known_dead(workers: Iterable[str]) -> list[str]:
        asked = list(workers)
        others = [worker for worker in asked if worker not in _dead]
        found = set(await dead(others)) if others else set()
        return [worker for worker in asked if worker in _dead or worker in found]

    def known_still_dead(worker: str) -> Op[bool]:
        if worker in _dead:
            return True
        return bool((yield from is_still_dead(worker)))

    def release_as_death_does(worker: str, *, signed_off: bool = True) -> None:
        release(worker, signed_off=signed_off and worker not in _dead)

    leases.dead, leases.is_still_dead, leases.release = known_dead, known_still_dead, release_as_death_does
