"""What the functions of the crash tests leave behind beside the database: a log that survives them, and marks."""

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """
    One thing that happened to a run, in the order of the log.

    Attributes:
        event: ``begin``, ``end`` (the action returns), ``raise``, ``callback``.
        attempt: 0 for callbacks, which have none.
        at_us: By the machine's monotonic clock, which its processes share.
    """

    event: str
    run_id: str
    attempt: int
    pid: int
    at_us: int


class Witness:
    """Writes the log, a line a write: what has been written is there, however its process dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "executions.log"
        self._marks = folder / "marks"
        self._marks.mkdir(exist_ok=True)
        self._descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def tell(self, event: str, run_id: str, attempt: int = 0) -> None:
        """Append a line."""
        at_us = time.monotonic_ns() // 1000
        os.write(self._descriptor, f"{event} {run_id} {attempt} {os.getpid()} {at_us}\n".encode())

    def count(self, what: str) -> int:
        """Return how often *what* has been counted by now, by any process: from 1."""
        number = 1
        while True:
            try:
                os.close(os.open(self._marks / f"{what}.{number}", os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                number += 1
            else:
                return number

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)


def read_log(folder: Path) -> list[Line]:
    """Read the log that processes have written in *folder*."""
    log = folder / "executions.log"
    if not log.exists():
        return []
    lines = []
    whole, _, _ = log.read_text("ascii").rpartition("\n")  # a line that is being written may be there in part
    for text in whole.splitlines():
        event, run_id, attempt, pid, at_us = text.split()
        lines.append(Line(event, run_id, int(attempt), int(pid), int(at_us)))
    return lines
