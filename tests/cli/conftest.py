"""What the tests of the command line share: a directory with an App, commands in this process, real processes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from action_retrier import App, Run, RunStatus, SyncActionRetrier
from action_retrier.cli.commands import cli
from action_retrier.testing import ManualClock

from ..support.postgres_server import ends_with_us

LIMIT_S = 30
"""How long any single wait may take before its test fails."""

JOB = """
import asyncio
import os
import threading

from action_retrier import App, MutationCtx, SyncActionCtx

app = App("sqlite:///job.db")
not_an_app = 7


@app.action
def double(x: int) -> int:
    return 2 * x


@app.action(max_failures=1, initial_backoff_ms=1)
def fail(message: str = "refused") -> None:
    raise ConnectionError(message)


@app.action(max_failures=0)
def print_pid() -> int:
    print("executed by", os.getpid(), flush=True)
    return os.getpid()


@app.action
def until_stopped(ctx: SyncActionCtx) -> None:
    os.write(1, b"began\\n")  # at once: several processes write to one pipe
    while not ctx.canceled:
        threading.Event().wait(0.01)
    print("gave way", flush=True)
    ctx.raise_if_canceled()


@app.action
def until_released() -> str:
    os.write(1, b"began\\n")  # at once: several processes write to one pipe
    while not os.path.exists("release"):
        threading.Event().wait(0.01)
    return "released"


@app.action
def thread_that_ignores() -> None:
    os.write(1, b"began\\n")  # at once: several processes write to one pipe
    threading.Event().wait()


@app.action
async def task_that_ignores() -> None:
    os.write(1, b"began\\n")  # at once: several processes write to one pipe
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


@app.action
async def loop_that_is_blocked() -> None:
    os.write(1, b"began\\n")  # at once: several processes write to one pipe
    threading.Event().wait()


@app.action
def leaves_a_thread() -> None:
    threading.Thread(target=threading.Event().wait).start()
    os.write(1, b"began\\n")  # at once: several processes write to one pipe


@app.mutation
def note(ctx: MutationCtx, context: str = "") -> None:
    if context:
        raise ValueError(context)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to work in, with `job.py`; no settings, and nothing left in this process."""
    for name in [name for name in os.environ if name.startswith("ACTION_RETRIER_") or name in {"COLUMNS", "NO_COLOR"}]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACTION_RETRIER_DATABASE_URL", "set and removed, so that it is removed in the end")
    monkeypatch.delenv("ACTION_RETRIER_DATABASE_URL")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB, encoding="utf-8")
    yield tmp_path
    forget_modules(tmp_path)


def forget_modules(folder: Path) -> None:
    """Have the next import of what is in *folder* happen anew, as in another process."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


class Said:
    """What a command has said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run a command in this process, as if its output were piped."""

    def call(*arguments: str, columns: int | None = None) -> Said:
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        forget_modules(folder)
        result = CliRunner().invoke(cli, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    return call


class Shop:
    """The database `job.db`, used by a program; time stands still in it."""

    def __init__(self, database: str = "sqlite:///job.db", namespace: str = "default") -> None:
        self.clock = ManualClock()
        self.app = App(database, namespace=namespace, clock=self.clock)
        self.retrier = SyncActionRetrier(self.app, jitter=0)

        @self.app.action(name="job:double")
        def double(x: int) -> int:
            return 2 * x

        @self.app.action(name="job:fail", max_failures=1, initial_backoff_ms=1500)
        def fail(message: str = "refused") -> None:
            raise ConnectionError(message)

        @self.app.mutation(name="job:note")
        def note(context: str = "") -> None:
            if context:
                raise ValueError(context)

    def start(self, action: str, args: dict[str, Any] | None = None, **options: Any) -> str:
        return self.retrier.run(self.app, action, args, **options)

    def work(self, *, passes_ms: float = 0) -> None:
        """Execute what is due; and again, if time passes, what is due then."""
        with self.app.worker() as worker:
            worker.until_idle()
            if passes_ms:
                self.clock.advance(passes_ms)
                worker.until_idle()


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    with shop.app:
        yield shop


class Retrier:
    """Starts runs by name for the workers of `job.py`, in real time."""

    def __init__(self) -> None:
        self.app = App("sqlite:///job.db")
        self._calls = SyncActionRetrier(self.app)

    def start(self, action: str, args: dict[str, Any] | None = None, **options: Any) -> str:
        return self._calls.run(self.app, action, args, **options)

    def wait(self, run_id: str) -> Any:
        return self._calls.wait(self.app, run_id, timeout_ms=LIMIT_S * 1000)

    def get(self, run_id: str) -> Run:
        return self._calls.get(self.app, run_id)

    def status(self, run_id: str) -> RunStatus:
        return self._calls.status(self.app, run_id)


@pytest.fixture
def retrier() -> Iterator[Retrier]:
    retrier = Retrier()
    with retrier.app:
        yield retrier


class Process:
    """A real process whose lines are heard as they come."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.itself = process
        self.pid = process.pid
        self.out: list[str] = []
        self.err: list[str] = []
        self._heard = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((process.stdout, self.out), (process.stderr, self.err))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._heard:
                lines.append(line.rstrip("\n"))
                self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    def hear(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until so many lines match, and return what is in the pattern's group; without one, the lines."""

        def found() -> list[str]:
            matches = [re.search(pattern, line) for line in [*self.out, *self.err]]
            return [match[1] if match.re.groups else match.string for match in matches if match]

        with self._heard:
            heard = self._heard.wait_for(lambda: len(found()) >= count, LIMIT_S)
            assert heard, f"heard {len(found())} of {count} lines with {pattern!r}:\n{self}"
            return found()

    def signal(self, number: signal.Signals) -> None:
        self.itself.send_signal(number)

    def wait(self) -> int:
        """Wait for its end and all that it says."""
        try:
            code = self.itself.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end:\n{self}")
        for reader in self._readers:
            reader.join(LIMIT_S)
        return code

    def __str__(self) -> str:
        return "\n".join([*self.out, *self.err])


Start = Callable[..., Process]


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Heed what nohup, or a shell's background job, would have us ignore, and what we start in turn."""
    heeded = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in heeded.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start_options() -> list[str]:
    """What every process is started with, besides what its test says."""
    return []


@pytest.fixture
def start(folder: Path, start_options: list[str]) -> Iterator[Start]:
    """Start `python -m action_retrier ...` in the directory, each in a process group of its own, which is ended."""
    processes: list[Process] = []

    def call(*arguments: str, **options: Any) -> Process:
        process = subprocess.Popen(
            [*ends_with_us(), sys.executable, "-m", "action_retrier", *arguments, *start_options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )
        processes.append(Process(process))
        return processes[-1]

    yield call
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.itself.wait()
        for stream in (process.itself.stdout, process.itself.stderr):
            for reader in process._readers:
                reader.join(LIMIT_S)
            if stream is not None:
                stream.close()


@pytest.fixture
def write(folder: Path) -> Callable[[str, str], None]:
    """Write a module."""

    def call(name: str, text: str) -> None:
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")

    return call


def eventually(is_true: Callable[[], bool], what: str) -> None:
    """Poll until something is true."""
    until = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < until, f"never: {what}"
        threading.Event().wait(0.01)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], bool], str], None]:
    return eventually


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return not status.stdout.strip().startswith("Z") and bool(status.stdout.strip())


@pytest.fixture(name="is_alive")
def is_alive_fixture() -> Callable[[int], bool]:
    return is_alive
