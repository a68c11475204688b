"""Check a database file: what can be seen of it without changing it."""

import contextlib
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from .connection import OLDEST_SQLITE, explain
from .schema import newest_version, read_meta

Check = tuple[str, Literal["ok", "warning", "error"], str]
"""What was checked, the verdict, and what was found and what to do."""

_LARGE_WAL_BYTES = 64 * 1024 * 1024
_CHECK_LIMIT_S = 5.0
_STEPS = 10_000  # of SQLite's virtual machine, between two looks at the time
_BUSY_TIMEOUT_S = 5.0
_NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|virtiofs|afs|ceph|glusterfs|lustre|beegfs|gpfs|davfs|"
    r"fuse\.(sshfs|s3fs|gcsfuse|rclone|glusterfs|ceph.*|juicefs|mfs|goofys|osxfs|grpcfuse)"
)
_MOUNTS = Path("/proc/mounts")
_WAL_RESET_BUG = (
    "can damage a WAL when two connections write and checkpoint at once (mended in 3.51.3, 3.50.7 and 3.44.6). "
    "Workers take turns and avoid that; on connections of your own to this file set `PRAGMA wal_autocheckpoint = 0`, "
    "or use a Python with a mended SQLite"
)


def diagnose(path: Path, *, synchronous: str = "full") -> list[Check]:
    """
    Check the database file at *path*.

    It is opened through SQLite only: closing a file that this process has open otherwise would
    drop SQLite's own locks on it.

    Args:
        synchronous: The mode that the URL asks for.
    """
    if not path.exists():
        return [("database file", "error", f"{path} does not exist: `action-retrier migrate` creates it")]
    checks = [_check_sqlite_version(sqlite3.sqlite_version_info), _check_mode(path), _check_file_system(path)]
    try:
        with contextlib.closing(_open(path)) as connection:
            checks = [_check_file(path), *checks, *_check_content(connection, path)]
    except sqlite3.Error as error:
        return [("database file", "error", str(explain(error, path) or f"{path}: {error}")), *checks]
    return [*checks, _check_synchronous(synchronous), _check_wal_size(path)]


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _check_file(path: Path) -> Check:
    refused = [str(one) for one in (path, path.parent) if not os.access(one, os.W_OK)]
    if refused:
        return "database file", "warning", f"this user may not write {' and '.join(refused)}; workers must be able to"
    return "database file", "ok", f"{path.stat().st_size / 1e6:.1f} MB"


def _check_content(connection: sqlite3.Connection, path: Path) -> Iterator[Check]:
    yield _check_schema(connection)
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        yield "journal mode", "ok", "WAL"
    else:
        yield "journal mode", "warning", f"{mode}, and not WAL: the next process that opens it for work switches it"
    yield _check_integrity(connection, path)


def _check_schema(connection: sqlite3.Connection) -> Check:
    what = "schema"
    found, newest = int(read_meta(connection, "version") or 0), newest_version()
    if found == 0:
        return what, "error", "missing: run `action-retrier migrate`, or start a worker"
    if found < newest:
        return what, "error", f"version {found}, and this code needs {newest}: run `action-retrier migrate`"
    if found > newest + 1:
        return what, "error", f"version {found}, and this code knows {newest}: upgrade action-retrier here"
    if found > newest:
        return what, "warning", f"version {found}, one more than this code knows: upgrade action-retrier here soon"
    return what, "ok", f"version {found}"


def _check_integrity(connection: sqlite3.Connection, path: Path) -> Check:
    """Look for damage, for a few seconds at most: a large file takes minutes."""
    what = "integrity"
    until = time.monotonic() + _CHECK_LIMIT_S
    connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            return what, "error", str(explain(error, path) or error)
        return what, "ok", f"no damage found in {_CHECK_LIMIT_S:g} s; all of it: sqlite3 {path} 'PRAGMA quick_check'"
    finally:
        connection.set_progress_handler(None, 0)
    if found == "ok":
        return what, "ok", "no damage found"
    return what, "error", f"damaged ({' '.join(found.split())}): stop the workers and restore a backup"


def _check_sqlite_version(version: tuple[int, ...]) -> Check:
    what, text = "SQLite version", ".".join(map(str, version))
    if version < OLDEST_SQLITE:
        return what, "error", f"{text}: use a Python with SQLite {'.'.join(map(str, OLDEST_SQLITE))} or later"
    if _can_damage_wal(version):
        return what, "warning", f"{text} {_WAL_RESET_BUG}"
    return what, "ok", text


def _can_damage_wal(version: tuple[int, ...]) -> bool:
    """Tell whether *version* has SQLite's WAL-reset bug: 3.7.0 to 3.51.2, but for two branches that were mended."""
    is_mended = (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)
    return (3, 7, 0) <= version <= (3, 51, 2) and not is_mended


def _check_synchronous(synchronous: str) -> Check:
    what = "synchronous"
    if synchronous == "normal":
        return what, "warning", "normal: a power failure can lose the last commits; leave it out of the URL for full"
    return what, "ok", synchronous


def _check_mode(path: Path) -> Check:
    what = "file mode"
    for one in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(one.stat().st_mode)
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                return what, "warning", f"{one} has mode {mode:04o}, so others can get at its data: chmod 600 {one}"
    return what, "ok", f"{stat.S_IMODE(path.stat().st_mode):04o}"


def _check_wal_size(path: Path) -> Check:
    what = "WAL size"
    try:
        size = path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return what, "ok", "no WAL: nobody has the file open"
    text = f"{size / 1e6:.1f} MB"
    if size > _LARGE_WAL_BYTES:
        return what, "warning", f"{text}: a transaction that stays open keeps it from being emptied; look for one"
    return what, "ok", text


def _check_file_system(path: Path) -> Check:
    what = "file system"
    try:
        mounts = _MOUNTS.read_text("utf-8", "replace")
    except OSError:
        return what, "ok", "not known here; it must be a local one"
    kind = _file_system_of(path, mounts)
    if _NETWORK_FILE_SYSTEMS.fullmatch(kind):
        return what, "warning", f"{kind}: SQLite's locks cannot be relied on over a network; move it to a local disk"
    return what, "ok", kind


def _file_system_of(path: Path, mounts: str) -> str:
    """Return the type of the file system that *path* is on: of the deepest mount point, the last one if several."""
    deepest, kind = -1, "unknown"
    for line in mounts.splitlines():
        _, where, found, *_ = line.split(" ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where))
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), found
    return kind
