"""
Every write, fsync, truncation and removal of a run's life on SQLite: the process dies there, or the call fails.

For N = 1, 2, 3, ...: the N-th call of a kind, each in a fresh database, until the run's life has ended before it.
"""

import itertools
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from crash_database import SqliteDatabase
from crash_life import CUT_OFF, TOO_FEW
from crash_processes import SUPPORT, Process, Processes
from crash_scene import Scene

AT_ONCE = 2
ENDS_WITHIN_S = 120
ENDINGS = [
    *((call, "kill") for call in ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink")),
    ("pwrite64", "torn"),
    ("pwrite64", "ENOSPC"),
    *((call, "EIO") for call in ("pwrite64", "fdatasync", "fsync", "ftruncate")),
]
"""System calls, and what happens at one."""
LIVES = [("open", "seldom"), ("live", "seldom"), ("live", "always")]
"""A database is opened for the first time; a run lives, without and with checkpoints all the time."""
COMPILER = shutil.which("cc") or shutil.which("gcc")


@dataclass
class Enumeration:
    """
    What came of it.

    Attributes:
        points: How many crash points there were, by life, checkpoints, system call and ending.
        failed: What was wrong, and where.
    """

    points: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return it for people, as Markdown."""
        names = {"open": "a new database is opened", "live": "a run's life"}
        lines = [
            f"{self.points.total():,} crash points, each write and fsync of a run's life on SQLite among them;"
            f" {len(self.failed)} failed.",
            "",
            "| in | at every | it | points |",
            "|---|---|---|---:|",
        ]
        for (order, checkpoints, call, how), count in self.points.items():
            what = names[order] + (", with a checkpoint after each commit" if checkpoints == "always" else "")
            does = {"kill": "kills the process", "torn": "kills the process half-way"}.get(how, f"fails ({how})")
            lines.append(f"| {what} | {call} | {does} | {count} |")
        return "\n".join([*lines, *(f"- FAILED: {one}" for one in self.failed[:20])])


def build(folder: Path) -> Path:
    """Compile what is preloaded."""
    library = folder / "crash_syscalls.so"
    source = SUPPORT / "crash_syscalls.c"
    subprocess.run(
        [str(COMPILER), "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"],
        check=True,
        capture_output=True,
    )
    return library


class _Lives:
    """A process that lives lives, one after the other."""

    def __init__(self, processes: Processes, library: Path) -> None:
        self._process: Process = processes.start("crash_life.py", under=["env", f"LD_PRELOAD={library}"])
        self._process.wait_for("ready")
        self._ended = 0

    def do(self, *order: object) -> int:
        """Have it do something; return the exit code."""
        self._process.tell(" ".join(map(str, order)))
        self._ended += 1
        return int(self._process.wait_for("ended", count=self._ended, within_s=ENDS_WITHIN_S))


def every_write(
    folder: Path, *, every: int = 1, first: int = 1, say: Callable[[str], None] = lambda _: None
) -> Enumeration:
    """
    Go through all of them.

    Args:
        folder: An empty one.
        every: Of N only each so-many-th is tried, from *first* on: for those who are in a hurry.
        say: Told of the progress.
    """
    found = Enumeration()
    lock = threading.Lock()
    library = build(folder)
    template = folder / "template"
    template.mkdir()
    scene = Scene(template, SqliteDatabase(f"sqlite:///{template / 'app.db'}"))
    scene.prepare()
    scene.close()
    processes = Processes(folder)
    lives = [_Lives(processes, library) for _ in range(AT_ONCE)]
    kinds: Iterator[tuple[tuple[str, str], tuple[str, str]]] = itertools.product(LIVES, ENDINGS)

    def enumerate_kinds(one: _Lives, number: int) -> None:
        for _ in iter(int, 1):
            with lock:
                kind = next(kinds, None)
            if kind is None:
                return
            (order, checkpoints), (call, how) = kind
            for nth in itertools.count(first, every):
                problem, is_over = _try(one, folder / f"life-{number}", template, order, call, how, nth, checkpoints)
                if is_over:
                    break
                with lock:
                    found.points[order, checkpoints, call, how] += 1
                    if problem:
                        found.failed.append(problem)
            say(
                f"{order}, checkpoints {checkpoints}: {call} {how}: {found.points[order, checkpoints, call, how]} points"
            )

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for future in [pool.submit(enumerate_kinds, one, number) for number, one in enumerate(lives)]:
                future.result()
    finally:
        processes.close()
    return found


def _try(
    lives: _Lives, place: Path, template: Path, order: str, call: str, how: str, nth: int, checkpoints: str
) -> tuple[str, bool]:
    """Return what is wrong after one life, if anything, and whether it had fewer calls than that."""
    shutil.rmtree(place, ignore_errors=True)
    if order == "open":
        place.mkdir()
    else:
        shutil.copytree(template, place)
    name = f"{order}, checkpoints {checkpoints}: {call} {nth} {how}"
    code = lives.do(order, place, call, how, nth, checkpoints)
    if code == TOO_FEW:
        return "", True
    expected = -signal.SIGKILL if how in {"kill", "torn"} else CUT_OFF
    if code != expected:
        return f"{name}: the life ended with {code}\n{_output(place)}", False
    if lives.do("judge", place) != 0:
        return f"{name}: the oracle found\n{_output(place)}", False
    return "", False


def _output(place: Path) -> str:
    output = place / "output.txt"
    return output.read_text("utf-8", "replace")[-3000:] if output.exists() else ""
