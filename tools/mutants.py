"""
Plant one bug at a time in a copy of the source, and see which test notices.

A suite proves something only if it can fail. The bugs of tests/mutants/planted.toml are of the kinds that libraries
like this one have shipped; all must die, by a test that names the promise. First the tests must pass without any. A
test that could not run, or did not end, is no kill: it would fail as well with a bug that breaks nothing it tests.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLANTED = ROOT / "tests" / "mutants" / "planted.toml"
LIMIT_S = 600
FAILED, NOTHING_RAN = 1, 5
"""Exit codes of pytest."""
NO_PROOF = re.compile(r"Timeout \(>|ImportError|ModuleNotFoundError|SyntaxError|NameError|syntax error|near \"")
"""In why a test failed: it has not judged the promise."""
WIDTH = 240
"""Of a line of pytest's: a cut one does not say why."""


@dataclass(frozen=True)
class Change:
    """One place that is made wrong."""

    file: str
    old: str
    new: str

    def apply(self, copy: Path) -> None:
        """Change it in *copy*; refuse unless the old text is there once."""
        path = copy / "src" / "action_retrier" / self.file
        text = path.read_text("utf-8")
        if text.count(self.old) != 1:
            raise SystemExit(f"{self.file}: {text.count(self.old)} times instead of once: {self.old!r}")
        path.write_text(text.replace(self.old, self.new), "utf-8")


@dataclass(frozen=True)
class Bug:
    """A bug to plant."""

    name: str
    promise: str
    shipped: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]

    @classmethod
    def load(cls, given: dict[str, Any]) -> "Bug":
        """Return what the file says."""
        places = [given, *given.get("also", [])]
        changes = tuple(Change(one["file"], one["old"], one["new"]) for one in places)
        return cls(given["name"], given["promise"], given["shipped"], changes, tuple(given["tests"]))


@dataclass
class Found:
    """What became of a bug."""

    name: str
    promise: str
    shipped: str
    killed_by: str = ""
    because: str = ""
    trouble: str = ""
    took_s: float = 0.0
    files: list[str] = field(default_factory=list)


def load(wanted: Sequence[str]) -> list[Bug]:
    """Return the planted bugs whose name contains one of *wanted*; all without any."""
    bugs = [Bug.load(one) for one in tomllib.loads(PLANTED.read_text("utf-8"))["bug"]]
    return [bug for bug in bugs if not wanted or any(word in bug.name for word in wanted)]


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests on a copy; return pytest's exit code and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=line"]
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": str(WIDTH)}
    try:
        done = subprocess.run(  # noqa: S603 - our own tests
            [*command, "-m", "not slow", *tests],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return FAILED, f"no end within {LIMIT_S} s\n{error.stdout!r}"
    return done.returncode, done.stdout + done.stderr


def kill(bug: Bug, copy: Path) -> Found:
    """Plant a bug in *copy*, run its tests, and take it out again."""
    found = Found(bug.name, bug.promise, bug.shipped, files=[change.file for change in bug.changes])
    began = time.monotonic()
    restore(copy)
    for change in bug.changes:
        change.apply(copy)
    code, told = run_tests(copy, bug.tests)
    found.took_s = time.monotonic() - began
    # A test that fails may leave what its teardown stumbles over: the failure comes first.
    failed = _reason("FAILED", told) or _reason("ERROR", told)
    if code == FAILED and failed is not None:
        found.because = failed[2] or ""
        if NO_PROOF.search(found.because):
            found.trouble = f"no proof by {failed[1]}: {found.because}"
        else:
            found.killed_by = failed[1]
    elif code != 0:
        found.trouble = f"pytest ended with {code}: {told[-500:]}"
    return found


def _reason(kind: str, told: str) -> re.Match[str] | None:
    """Find the first test of a kind in pytest's summary, and why it is there."""
    return re.search(rf"^{kind} (tests/.+?)(?: - (.*))?$", told, re.MULTILINE)


def restore(copy: Path) -> None:
    """Make the source in *copy* what it is here."""
    shutil.rmtree(copy / "src", ignore_errors=True)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", ".mypy_cache"))


def make_copy(parent: Path, number: int) -> Path:
    """Copy what the tests need."""
    copy = parent / str(number)
    copy.mkdir()
    for name in ("tests", "benchmarks", "examples", "docs", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, copy / name)
    restore(copy)
    return copy


def what_is_unsound(copy: Path, tests: Sequence[str]) -> str:
    """Tell how tests fail already; nothing if they pass."""
    code, told = run_tests(copy, tests)
    if code == 0:
        return ""
    what = "select nothing" if code == NOTHING_RAN else "fail without any bug"
    return f"{' '.join(tests)}: these tests {what}\n{told[-2000:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill them all, or say who lives."""
    parser = argparse.ArgumentParser(description="Plant bugs, and see which test kills each.")
    parser.add_argument("names", nargs="*", help="parts of names; all bugs without any")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once (%(default)s)")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests without any bug first")
    options = parser.parse_args(arguments)
    bugs = load(options.names)
    with tempfile.TemporaryDirectory(prefix="action-retrier-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(make_copy(Path(folder), number))

        def in_a_copy(work: Callable[[Path], Any]) -> Any:
            copy = copies.get()
            try:
                return work(copy)
            finally:
                copies.put(copy)

        def kill_one(bug: Bug) -> Found:
            found = in_a_copy(lambda copy: kill(bug, copy))
            if not options.json:
                print(told(found), flush=True)
            return found

        with ThreadPoolExecutor(options.jobs) as threads:
            groups = [] if options.unchecked else list(dict.fromkeys(bug.tests for bug in bugs))
            unsound = threads.map(lambda tests: in_a_copy(lambda copy: what_is_unsound(copy, tests)), groups)
            problems = [problem for problem in unsound if problem]
            if problems:
                raise SystemExit("\n".join(problems))
            all_found = list(threads.map(kill_one, bugs))
    alive = [found for found in all_found if not found.killed_by]
    if options.json:
        print(json.dumps([asdict(found) for found in all_found], indent=2))
    else:
        print(f"{len(all_found)} planted, {len(all_found) - len(alive)} killed, {len(alive)} alive")
    return 1 if alive else 0


def told(found: Found) -> str:
    """Return what people read of one."""
    if found.killed_by:
        fate = f"killed by {found.killed_by}\n    because {found.because}"
    else:
        fate = f"TROUBLE: {found.trouble}" if found.trouble else "ALIVE"
    shipped = f"\n    shipped {found.shipped}" if found.shipped else ""
    return f"{found.name}\n    breaks  {found.promise}{shipped}\n    {fate} ({found.took_s:.1f} s)"


if __name__ == "__main__":
    raise SystemExit(main())
