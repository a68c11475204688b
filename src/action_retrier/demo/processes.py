"""The demo's child processes: started apart from the terminal, ended by their id, always."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Self, cast

GRACE_S = 10.0
"""How long a process may take to leave when it is asked to."""


class Child:
    """One process, with its standard output as lines and its standard error in a file."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.lines: list[str] = []
        self._process = process
        self._first: SimpleQueue[str] = SimpleQueue()
        self._reader = Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        output = cast("IO[str]", self._process.stdout)
        for line in output:
            self.lines.append(line)
            self._first.put(line)
        self._first.put("")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._process.poll()

    def first_line(self) -> str:
        """Wait for its first line of output; empty if it ended without one."""
        return self._first.get(timeout=GRACE_S)

    def kill(self) -> None:
        """End it with SIGKILL, and take note of its end."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """Ask it to leave."""
        self._process.terminate()

    def wait(self, timeout_s: float = GRACE_S) -> int | None:
        """Wait for its end and all its output. None if it is still there."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(timeout_s)
        return code

    def last_words(self) -> str:
        """The last line that it wrote on its standard error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "nothing")

    def end(self) -> None:
        """End it whatever it does, and give back what it held."""
        if self.exit_code is None:
            self.kill()
        self._reader.join(1)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Children:
    """All processes of one demo. None of them outlives the `with` block."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()

    def start(self, name: str, *arguments: str) -> Child:
        """Start `python ARGUMENTS`, in a session of its own so that Ctrl-C reaches only the demo."""
        log = self._folder / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own modules, by this very interpreter
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                encoding="utf-8",
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child
