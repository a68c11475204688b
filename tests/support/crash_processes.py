"""Start, watch and end real processes, and wait for things with a limit."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from postgres_server import ends_with_us

T = TypeVar("T")

SUPPORT = Path(__file__).parent
LIMIT_S = 30.0
"""How long any single wait may take before its test fails."""
LOOK_S = 0.01


def eventually(check: Callable[[], T], *, within_s: float = LIMIT_S, what: str = "") -> T:
    """Ask *check* again and again until it says something true, and return that."""
    give_up_at = time.monotonic() + within_s
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < give_up_at, f"not within {within_s:g} s: {what or check.__name__}"
        time.sleep(LOOK_S)


class Process:
    """A process of the test's, what it says line by line, and what it logs."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self.lines: list[str] = []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ACTION_RETRIER_")}
        environment["ACTION_RETRIER_LOG_LEVEL"] = "INFO"
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), environment.get("PYTHONPATH")]))
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                # What reaches our group is not for it: the signals of a terminal, and what the kernel sends to a group
                # whose shell ends while one of it is stopped.
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def said(self, word: str) -> list[str]:
        """Return what has followed *word*, line by line."""
        return [line.removeprefix(word).strip() for line in list(self.lines) if line.split(" ")[0] == word]

    def wait_for(self, word: str, *, count: int = 1, within_s: float = LIMIT_S) -> str:
        """Wait until it has said *word* so often; return what followed the last time."""

        def check() -> list[str]:
            # Asked in this order: what a process has said before its end is read after it.
            ended = not self.is_running
            if ended:
                self._reader.join()
            found = self.said(word)
            assert len(found) >= count or not ended, f"ended without saying {word!r}\n{self.log.read_text()}"
            return found if len(found) >= count else []

        return eventually(check, within_s=within_s, what=f"{word!r} from process {self.pid}")[count - 1]

    def wait_for_log(self, text: str) -> None:
        """Wait until it has logged *text*."""
        eventually(lambda: text in self.log.read_text(), what=f"{text!r} in the log of process {self.pid}")

    def tell(self, line: str = "") -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end_input(self) -> None:
        """End its standard input."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """End it by SIGKILL; return the instant, as the log of executions has it."""
        at_us = time.monotonic_ns() // 1000
        self._process.kill()
        self.wait()
        return at_us

    def wait(self, within_s: float = LIMIT_S) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        code = self._process.wait(within_s)
        self._reader.join()
        return code

    def stop(self, within_s: float = LIMIT_S) -> None:
        """End a worker as a supervisor would, once it has got as far as heeding signals."""
        self.wait_for("worker")
        self.signal(signal.SIGTERM)
        code = self.wait(within_s)
        assert code == 0, f"exit code {code}\n{self.log.read_text()}"

    def close(self) -> None:
        """Leave nothing of it behind."""
        if self.is_running:
            self._process.kill()  # reaches a stopped one as well
            self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Processes:
    """The processes of one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Process] = []

    def start(self, script: str, *arguments: object, under: Iterable[str] = ()) -> Process:
        """Start a program of the support directory, or another by its path, *under* another one or by itself."""
        log = self._folder / f"process-{len(self._all)}.log"
        process = Process([*ends_with_us(), *under, sys.executable, str(SUPPORT / script), *map(str, arguments)], log)
        self._all.append(process)
        return process

    def logs(self) -> str:
        """Return what all of them have logged."""
        return "\n".join(f"--- {one.log.name} (process {one.pid})\n{one.log.read_text()}" for one in self._all)

    def close(self) -> None:
        """Leave nothing behind."""
        for process in self._all:
            process.close()
