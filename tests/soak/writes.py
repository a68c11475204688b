"""
Every write, fsync, truncation and removal of a run's life on SQLite: the process dies there, or the call fails.

For N = 1, 2, 3, ...: the N-th call of a kind, each in a fresh database, until the run's life has ended before it.
"""

import itertools
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
GROUPS = len(LIVES) * len(ENDINGS)
PROGRESS_EVERY_S = 10.0
COMPILER = shutil.which("cc") or shutil.which("gcc")


@dataclass
class Enumeration:
    """
    What came of it.

    Attributes:
        points: How many crash points there were, by life, checkpoints, system call and ending.
        failed: What was wrong, and where.
        failed_at: How often that was, by system call and ending.
        groups: How many of `GROUPS` it has gone through.
        took_s: How long it took.
    """

    points: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    failed_at: Counter[tuple[str, str]] = field(default_factory=Counter)
    groups: int = 0
    took_s: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether nobody stopped it."""
        return self.groups == GROUPS

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "points": self.points.total(),
            "failed": len(self.failed),
            "groups": self.groups,
            "planned_groups": GROUPS,
            "took_s": round(self.took_s, 1),
            "by_system_call": [
                {"system_call": call, "ending": how, "points": points, "failed": self.failed_at[call, how]}
                for (call, how), points in self._by_call.items()
            ],
            "failures": self.failed[:100],
        }

    @property
    def _by_call(self) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for (_, _, call, how), count in self.points.items():
            found[call, how] += count
        return Counter({ending: found[ending] for ending in ENDINGS if found[ending]})

    def table(self) -> str:
        """Return it for people, as Markdown."""
        title = "### sqlite, crash points"
        if not self.is_whole:
            title += f", stopped after {self.groups} of {GROUPS} groups"
        lines = [
            title,
            "",
            f"{self.points.total():,} crash points in {self.took_s:,.0f} s, {len(self.failed)} failed: at each of the system"
            " calls by which a new database is opened, and by which a run lives, without and with a checkpoint after each"
            " commit, the process dies or the call fails; a fresh worker ends what is left, and the oracle looks at it.",
            "",
            "| system call | what happens at it | points | failed |",
            "|---|---|---:|---:|",
        ]
        for (call, how), count in self._by_call.items():
            does = {"kill": "the process dies (SIGKILL)", "torn": "the process dies half-way through it"}
            what = does.get(how, f"it fails ({how})")
            lines.append(f"| {call} | {what} | {count:,} | {self.failed_at[call, how]:,} |")
        return "\n".join([*lines, "", *(f"- FAILED: {one}" for one in self.failed[:20])]).rstrip()


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


class _Progress:
    """Tells of it now and then."""

    def __init__(self, found: Enumeration, say: Callable[[str], None]) -> None:
        self._found = found
        self._say = say
        self.began_at = self._said_at = time.monotonic()

    def tell(self, *, is_due: bool) -> None:
        """Say how far it has got, if that is due or has not been said for a while."""
        now = time.monotonic()
        if not is_due and now < self._said_at + PROGRESS_EVERY_S:
            return
        self._said_at = now
        found, took_s = self._found, int(now - self.began_at)
        self._say(
            f"{found.groups:4} of {GROUPS} groups, {found.points.total():5,} points, {len(found.failed)} failed;"
            f" {took_s // 60}:{took_s % 60:02} elapsed"
        )


def every_write(
    folder: Path,
    *,
    every: int = 1,
    first: int = 1,
    say: Callable[[str], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Enumeration:
    """
    Go through all of them.

    Args:
        folder: An empty one.
        every: Of N only each so-many-th is tried, from *first* on: for those who are in a hurry.
        say: Told of the progress.
        is_stopped: Whether to try no more points.
    """
    is_ended = threading.Event()
    found = Enumeration()
    progress = _Progress(found, say)
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
                if is_ended.is_set() or is_stopped():
                    return
                problem, is_over = _try(one, folder / f"life-{number}", template, order, call, how, nth, checkpoints)
                if is_over:
                    break
                with lock:
                    found.points[order, checkpoints, call, how] += 1
                    if problem:
                        found.failed.append(problem)
                        found.failed_at[call, how] += 1
                    progress.tell(is_due=False)
            with lock:
                found.groups += 1
                progress.tell(is_due=found.points[order, checkpoints, call, how] > 0)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for future in [pool.submit(enumerate_kinds, one, number) for number, one in enumerate(lives)]:
                future.result()
        finally:
            is_ended.set()
            processes.close()
    found.took_s = time.monotonic() - progress.began_at
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
