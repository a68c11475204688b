"""What the acceptance tests share: one adapter for the two facades, a gate, a table of the user's own, real scripts.

The tests use nothing but what the documentation promises. They own time (`ManualClock`) and wait on signals, so
none of them sleeps; every wait has a limit, so that a broken promise fails a test and does not hang it.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import os
import queue
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from action_retrier import ActionCtx, ActionRetrier, App, Completed, SyncActionCtx, SyncActionRetrier
from action_retrier.testing import ManualClock

from ..stores import SqliteSystem, System
from ..support.postgres_server import ends_with_us

LIMIT_S = 30
"""How long any single wait may take before its test fails."""

START = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
"""When the manual clock starts."""

VERBS = {
    *("run", "run_at", "run_after", "run_many", "status", "wait", "get", "list"),
    *("cancel", "cancel_all", "cleanup", "retry", "retry_all"),
}


class Lane:
    """A daemon thread that makes the calls it is given, in order: where a synchronous program lives."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[concurrent.futures.Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="sync-program", daemon=True).start()

    def _serve(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the call
                future.set_exception(error)

    async def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._calls.put((future, functools.partial(function, *args, **options)))
        return await asyncio.wrap_future(future)


async def _in_loop(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    value = function(*args, **options)
    return await value if inspect.isawaitable(value) else value


class Worker:
    """A worker of either colour."""

    def __init__(self, api: "Colour", worker: Any) -> None:
        self._api = api
        self.itself = worker

    async def until_idle(self) -> None:
        await self._api.call(self.itself.until_idle)


class Scripted:
    """An action whose n-th execution does what the n-th item of its script says: raise it or return it."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.contexts: list[Any] = []
        self.action: Any = None
        self._lock = threading.Lock()

    def step(self, ctx: Any) -> Any:
        with self._lock:
            self.contexts.append(ctx)
            item = self.script[min(len(self.contexts), len(self.script)) - 1]
        if isinstance(item, BaseException):
            raise item.with_traceback(None)
        if isinstance(item, type) and issubclass(item, BaseException):
            raise item
        return item

    @property
    def executions(self) -> int:
        return len(self.contexts)


class Colour:
    """An App on a database with a retrier of one colour; `await` whatever you call, in both.

    "async" calls in the test's own event loop. "sync" calls in a thread of its own that has no event loop.
    """

    def __init__(self, name: str, system: System, clock: ManualClock, lane: Lane | None = None, **options: Any) -> None:
        self.name = name
        self.system = system
        self.clock = clock
        self._lane = lane or Lane()
        self.app = App(system.url, clock=clock, **options)
        self.retrier = self.new_retrier()

    @property
    def database(self) -> Path:
        """The file, on SQLite."""
        assert isinstance(self.system, SqliteSystem)
        return self.system.path

    @property
    def is_async(self) -> bool:
        return self.name == "async"

    def sibling(self, **options: Any) -> "Colour":
        """Another App on the same database, as another service has one."""
        return Colour(self.name, self.system, self.clock, self._lane, **options)

    def new_retrier(self, **options: Any) -> Any:
        return (ActionRetrier if self.is_async else SyncActionRetrier)(self.app, **options)

    # -- calling -----------------------------------------------------------------------------------------------

    async def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call *function* where a program of this colour lives, and wait for what it returns."""
        async with asyncio.timeout(LIMIT_S):
            return await (_in_loop if self.is_async else self._lane.call)(function, *args, **options)

    def background(self, function: Callable[..., Any], *args: Any, **options: Any) -> "asyncio.Task[Any]":
        """Call *function* beside the test: in another task (async) or another thread (sync)."""
        call = _in_loop if self.is_async else Lane().call
        return asyncio.create_task(call(function, *args, **options))

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        if verb not in VERBS:
            raise AttributeError(verb)
        return functools.partial(self.call, getattr(self.retrier, verb))

    async def run_mutation(self, function: Any, *args: Any) -> Any:
        return await self.call(self.app.run_mutation if self.is_async else self.app.run_mutation_sync, function, *args)

    async def run_action(self, function: Any, *args: Any) -> Any:
        return await self.call(self.app.run_action if self.is_async else self.app.run_action_sync, function, *args)

    # -- context managers --------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def entered(self, factory: Callable[..., Any], **options: Any) -> AsyncIterator[Any]:
        """`async with factory(...)`, or `with factory(...)` in the synchronous program's thread."""
        if self.is_async:
            async with factory(**options) as value:
                yield value
            return
        manager = await self.call(factory, **options)
        value = await self.call(manager.__enter__)
        try:
            yield value
        except BaseException as error:
            if not await self.call(manager.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await self.call(manager.__exit__, None, None, None)

    async def __aenter__(self) -> Self:
        await self.call(self.app.__aenter__ if self.is_async else self.app.__enter__)
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.call(self.app.__aexit__ if self.is_async else self.app.__exit__, None, None, None)

    @contextlib.asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[Worker]:
        async with self.entered(self.app.worker, **options) as worker:
            yield Worker(self, worker)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        async with self.entered(self.app.transaction) as ctx:
            yield ctx

    # -- the user's own database handle and table --------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def connection(self, path: Path | None = None, **options: Any) -> AsyncIterator[Any]:
        """The user's own connection. What it does in the test's body goes through `call`."""
        if isinstance(self.system, SqliteSystem):
            connection = await self.call(sqlite3.connect, path or self.database, **options)
        else:
            kind = psycopg.AsyncConnection if self.is_async else psycopg.Connection
            connection = await self.call(kind.connect, self.system.user_url, **self.system.user_options | options)
        try:
            yield connection
        finally:
            await self.call(connection.close)

    def notes(self) -> list[str]:
        """What is committed in the user's table `notes`."""
        return self.system.notes()

    # -- actions and results -----------------------------------------------------------------------------------

    def scripted(self, *script: Any, name: str = "scripted", flavour: str = "def", **policy: Any) -> Scripted:
        """Register an action that follows *script*, the last item for ever."""
        scripted = Scripted(list(script))
        if flavour == "def":

            def action(ctx: SyncActionCtx) -> Any:
                return scripted.step(ctx)
        else:

            async def action(ctx: ActionCtx) -> Any:
                return scripted.step(ctx)

        scripted.action = self.app.action(name=name, **policy)(action)
        return scripted

    async def result(self, worker: Worker, run_id: str, *, steps: int = 25, step_ms: int = 60_000) -> Any:
        """Let time pass until the run is completed, and return its result."""
        for _ in range(steps):
            await worker.until_idle()
            status = await self.status(self.app, run_id)
            if isinstance(status, Completed):
                return status.result
            self.clock.advance(step_ms)
        raise AssertionError(f"the run is still in progress: {await self.get(self.app, run_id)}")

    async def all_runs(self, **filters: Any) -> list[Any]:
        """Every run that matches, over all pages."""
        runs: list[Any] = []
        cursor = None
        while True:
            page = await self.list(self.app, cursor=cursor, **filters)
            runs.extend(page.runs)
            if page.cursor is None:
                return runs
            cursor = page.cursor

    async def eventually(self, check: Callable[[], Any], *, within_s: float = 5.0) -> Any:
        """Ask *check* (plain or awaitable) again and again until it says something true."""
        give_up_at = time.monotonic() + within_s
        while True:
            value = check()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            assert time.monotonic() < give_up_at, "this did not become true in time"
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.01)

    async def advance_until_done(self, task: "asyncio.Task[Any]", step_ms: int, *, within_s: float = 10.0) -> Any:
        """Let time pass in steps until *task* ends, and return or raise what it does."""
        give_up_at = time.monotonic() + within_s
        while not task.done():
            assert time.monotonic() < give_up_at, "the task did not end, however far time went on"
            self.clock.advance(step_ms)
            await asyncio.wait({task}, timeout=0.02)
        return task.result()


class Gate:
    """A point at which an action waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._wakers: list[Callable[[], object]] = []

    def wait(self) -> None:
        """Wait in a `def` action."""
        self.reached.set()
        assert self._open.wait(LIMIT_S), "nobody opened the gate"

    async def wait_async(self) -> None:
        """Wait in an `async def` action."""
        opened, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._lock:
            if not self._open.is_set():
                self._wakers.append(lambda: loop.call_soon_threadsafe(opened.set))
            else:
                opened.set()
        self.reached.set()
        async with asyncio.timeout(LIMIT_S):
            await opened.wait()

    def open(self) -> None:
        with self._lock:
            self._open.set()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            with contextlib.suppress(RuntimeError):  # the action's event loop is gone, and the action with it
                wake()

    async def until_reached(self) -> None:
        """Wait in the test until the action is here."""
        assert await asyncio.to_thread(self.reached.wait, LIMIT_S), "the action never came here"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.open()


@pytest.fixture
def note(system: System) -> Callable[[Any, str], None]:
    """Write to the user's own table through a connection or a MutationCtx."""
    return lambda handle, text: system.write_note(getattr(handle, "db", handle), text)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def database(system: System) -> Path:
    """A database file that holds a table of the user's own: whoever asks for it runs on SQLite only."""
    assert isinstance(system, SqliteSystem)
    return system.path


@pytest.fixture(params=["async", "sync"])
def colour(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def api(colour: str, system: System, clock: ManualClock) -> AsyncIterator[Colour]:
    """An open App and its retrier, once in each colour."""
    async with Colour(colour, system, clock) as opened:
        yield opened


@pytest.fixture
async def async_api(system: System, clock: ManualClock) -> AsyncIterator[Colour]:
    async with Colour("async", system, clock) as opened:
        yield opened


@pytest.fixture
async def sync_api(system: System, clock: ManualClock) -> AsyncIterator[Colour]:
    async with Colour("sync", system, clock) as opened:
        yield opened


@pytest.fixture(params=["def", "async def"])
def flavour(request: pytest.FixtureRequest) -> str:
    """How the action is written."""
    return request.param


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as gate:
        yield gate


@pytest.fixture
def second_gate() -> Iterator[Gate]:
    with Gate() as gate:
        yield gate


class Scripts:
    """Real Python processes in a directory of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("ACTION_RETRIER_")}
        self.environment["PYTHONIOENCODING"] = "utf-8"

    def write(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*ends_with_us(), sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run `python *arguments*`; it must succeed."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=2 * LIMIT_S)
        finally:
            process.kill()
        assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


@pytest.fixture(autouse=True)
def environment_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on the settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("ACTION_RETRIER_")]:
        monkeypatch.delenv(name)
