"""An environment of its own for each library that is measured, made when first needed, in ``.bench/environments``."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".bench"
PYTHON_VARIABLE = "BENCH_PYTHON"

# What is installed, and the oldest Python that it runs on. Exact, so that a figure can be found again.
PEERS: dict[str, tuple[tuple[int, int], list[str]]] = {
    "pgqueuer": ((3, 11), ["pgqueuer[asyncpg]==1.6.0", "uvloop==0.23.0", "psycopg[binary]==3.3.9"]),
    "procrastinate": ((3, 11), ["procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"]),
    "oban": ((3, 12), ["oban==0.7.0", "psycopg[binary,pool]==3.3.9"]),
    "dbos": ((3, 11), ["dbos==3.4.0", "pysqlite3-binary==0.5.4.post2", "psycopg[binary]==3.3.9"]),
    "absurd": ((3, 11), ["absurd-sdk==0.5.1", "absurdctl==0.5.1", "psycopg[binary]==3.3.9"]),
    "huey": ((3, 11), ["huey==3.5.4"]),
    "celery": ((3, 11), ["celery[redis]==5.7.0"]),
    "dramatiq": ((3, 11), ["dramatiq[redis]==2.2.1"]),
    "taskiq": ((3, 11), ["taskiq==0.13.0", "taskiq-redis==1.2.4", "uvloop==0.23.0"]),
}


class UnavailableError(Exception):
    """Something cannot be measured here; the message says why."""


@functools.cache
def interpreter(name: str) -> str:
    """Return the Python that has a library, and install it first if need be; ours and the floor are in this one."""
    if name not in PEERS:
        return sys.executable
    oldest, wanted = PEERS[name]
    base = find_python(oldest)
    folder = CACHE / "environments" / name
    stamp = folder / "made-of"
    made_of = hashlib.sha256("\n".join([base, *wanted]).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != made_of:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in (
            [base, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise UnavailableError(f"cannot install {' '.join(wanted)}: {_last_line(done.stderr)}")
        stamp.write_text(made_of)
    return str(folder / "bin" / "python")


def find_python(oldest: tuple[int, int]) -> str:
    """Return a Python that is new enough: this one, or ``$BENCH_PYTHON``, or one on the PATH or of pyenv's."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    for candidate in _candidates(oldest):
        check = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < {oldest})"
        try:
            if subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    wanted = ".".join(map(str, oldest))
    raise UnavailableError(f"needs Python {wanted} or newer, and none was found: name one in {PYTHON_VARIABLE}")


def _candidates(oldest: tuple[int, int]) -> Iterator[str]:
    if named := os.environ.get(PYTHON_VARIABLE):
        yield named
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for minor in range(oldest[1], oldest[1] + 8):
        if found := shutil.which(f"python{oldest[0]}.{minor}"):
            yield found
        yield from map(str, sorted(versions.glob(f"{oldest[0]}.{minor}.*/bin/python")))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
