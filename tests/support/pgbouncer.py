"""PgBouncer before a server, in transaction mode: whoever connects to it may get another session for each transaction."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from .postgres_server import as_nobody, free_port, is_answered, own, wait_until

VARIABLE = "ACTION_RETRIER_TEST_PGBOUNCER"
"""Set to 1, the tests that run on each system run through PgBouncer too."""
POOLED = urlencode({"direct": "false", "notify": "false"})
"""What a URL that leads through it says to this library."""

_SETTINGS = """\
[databases]
* = host={host} port={port} user={user}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 1000
default_pool_size = 30
ignore_startup_parameters = extra_float_digits
logfile = {folder}/log
pidfile = {folder}/pid
"""


def why_not() -> str:
    """Return why it cannot be run here; empty if it can."""
    return "" if _program() else "PgBouncer is not installed (on Debian: apt install pgbouncer)"


def _program() -> str | None:
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextlib.contextmanager
def pgbouncer(url: str) -> Iterator[str]:
    """Run one before the server at *url*; yields the URL that leads through it, to the same database."""
    program = _program()
    assert program is not None
    server = urlsplit(url)
    folder = Path(tempfile.mkdtemp(prefix="action-retrier-pgbouncer-"))
    own(folder)
    port = free_port()
    user, password = server.username or "postgres", f" password={server.password}" if server.password else ""
    (folder / "ini").write_text(
        _SETTINGS.format(
            host=server.hostname, port=server.port or 5432, user=user, password=password, own_port=port, folder=folder
        )
    )
    (folder / "ini").chmod(0o644)
    process = subprocess.Popen(
        [*as_nobody("KILL"), program, str(folder / "ini")],  # it ignores SIGQUIT
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    through = server._replace(netloc=f"{user}@127.0.0.1:{port}", query="").geturl()
    try:
        wait_until(lambda: is_answered(through), lambda: f"pgbouncer has ended with {process.poll()}")
        yield through
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
