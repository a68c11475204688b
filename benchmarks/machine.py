"""What the figures were taken on."""

import hashlib
import os
import platform
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environments import ROOT
from benchmarks.places import Places, fsync_us, redis_version


def facts(places: Places, *, needs_postgres: bool) -> dict[str, Any]:
    """Return what a reader of a figure must know."""
    directory = places.directory or Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108 - only looked at
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "kernel": f"{platform.system()} {platform.release()}",
        "system": _system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "postgres": f"{places.postgres_version()}, fsync on, else its defaults" if needs_postgres else None,
        "redis": redis_version(),
        "filesystem": _filesystem(directory),
        "fsync_us": round(fsync_us(places.directory)),
        "load_before": round(os.getloadavg()[0], 2),
    }


def source() -> str:
    """Return a digest of what is measured: of the library's files, whether committed or not."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src" / "action_retrier").rglob("*")):
        if path.suffix in {".py", ".sql"}:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def commit() -> str:
    """Return the commit that is checked out, if git knows it."""
    try:
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _system() -> str:
    try:
        return str(platform.freedesktop_os_release()["PRETTY_NAME"])
    except OSError:
        return platform.platform()


def _filesystem(directory: Path) -> str:
    around = [one for one in psutil.disk_partitions(all=True) if directory.resolve().is_relative_to(one.mountpoint)]
    return max(around, key=lambda one: len(one.mountpoint)).fstype if around else "unknown"
