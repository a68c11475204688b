"""Ours, the floor and the peers, as programs: carry out a command, or run a worker."""

import contextlib
import functools
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import CACHE, ROOT, interpreter
from benchmarks.protocol import CONSTANTS_VARIABLE, TALLY_VARIABLE, THREADS_VARIABLE, Tally
from tests.support.postgres_server import ends_with_us

LIMIT_S = 300.0
LOOK_S = 0.002


class FailedError(Exception):
    """A program did not do what it was asked for; the message has its last words."""


@dataclass(frozen=True)
class Side:
    """A library in one of its variants, as a program with the commands of ``protocol``."""

    name: str
    library: str  # the file's name in this folder or in peers
    variant: str = ""
    constants: str = ""  # of its program, other than they stand there: "LIMIT=100 POOL=4"; for trials

    @property
    def module(self) -> str:
        return f"benchmarks.{self.library}" if self.library in {"ours", "floor"} else f"benchmarks.peers.{self.library}"

    def command(self, command: str, url: str, *arguments: object) -> list[str]:
        given = [self.variant or "-", command, url, *map(str, arguments)]
        return [interpreter(self.library), "-m", self.module, *given]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, CONSTANTS_VARIABLE: self.constants, "PYTHONUNBUFFERED": "1"}

    def ask(self, command: str, url: str, *arguments: object, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Carry out a command in a process of its own, and return its answer."""
        with _log(self.name) as log:
            try:
                done = subprocess.run(
                    [*ends_with_us(), *self.command(command, url, *arguments)],
                    cwd=ROOT,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    timeout=limit_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise FailedError(f"{self.name} {command}: no answer within {limit_s:g} s") from None
            if done.returncode != 0 or not done.stdout:
                raise FailedError(f"{self.name} {command}: {_last_words(log)}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        return self.ask("info", "-")


class Worker:
    """A worker process, ready to begin."""

    def __init__(self, side: Side, url: str, tally: Tally, *, threads: int | None = None) -> None:
        self._side = side
        self._log = (CACHE / "logs" / f"{side.name.replace(' ', '-')}.log").open("w+")
        environment = {**side.environment, TALLY_VARIABLE: str(tally.path)}
        if threads is not None:
            environment[THREADS_VARIABLE] = str(threads)
        self.process = subprocess.Popen(
            [*ends_with_us(), *side.command("work", url)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._answer()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=60)
        except queue.Empty:
            raise FailedError(f"{self._side.name} work: no answer within 60 s") from None
        if not line:
            raise FailedError(f"{self._side.name} work: {_last_words(self._log)}")
        return dict(json.loads(line))

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError:
            raise FailedError(f"{self._side.name} work: {_last_words(self._log)}") from None

    def go(self) -> None:
        self._tell("go")

    def left(self) -> int:
        """Return how many tasks have not durably ended."""
        self._tell("left")
        return int(self._answer()["left"])

    def kill(self) -> None:
        """End it and all that it has started as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self._log):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def check(self) -> None:
        if self.process.poll() is not None:
            raise FailedError(f"{self._side.name} work: ended: {_last_words(self._log)}")


@contextlib.contextmanager
def tallied() -> Iterator[Tally]:
    """Lend a tally for a sample."""
    folder = Path(tempfile.mkdtemp(prefix="bench-tally-"))
    try:
        yield Tally(folder / "tally")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def working(
    side: Side, url: str, tally: Tally, count: int = 1, *, threads: int | None = None
) -> Iterator[list[Worker]]:
    """Have so many workers, all of them ready; kill them at the end."""
    workers: list[Worker] = []
    try:
        workers += itertools.starmap(
            functools.partial(Worker, threads=threads), itertools.repeat((side, url, tally), count)
        )
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def wait_until(is_true: Callable[[], bool], workers: list[Worker], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait for something that shows in a tally, as long as the workers live."""
    give_up_at = time.monotonic() + limit_s
    looks = 0
    while not is_true():
        time.sleep(LOOK_S)
        looks += 1
        if looks % 100 == 0:
            for worker in workers:
                worker.check()
            if time.monotonic() > give_up_at:
                raise FailedError(f"{what}: not within {limit_s:g} s")


@contextlib.contextmanager
def _log(name: str) -> Iterator[Any]:
    folder = CACHE / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name.replace(' ', '-')}.command.log").open("w+") as file:
        yield file


def _last_words(log: Any) -> str:
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
