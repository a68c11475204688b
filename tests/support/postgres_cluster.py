"""A primary with a synchronous standby: what is acknowledged is on both."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psycopg
from postgres_server import Server, wait_until


class Cluster(Protocol):
    """Servers of which one takes writes, and another one can."""

    @property
    def url(self) -> str:
        """The URL that names them all."""

    def lose_primary(self) -> None:
        """End the primary, all of its processes at once."""

    def take_over(self) -> None:
        """Return when another one takes writes."""


class Pair:
    """A primary, its standby, and a test that decides which is which."""

    def __init__(self, folder: Path) -> None:
        self._primary = Server(folder / "primary", fsync="on")
        self._standby = Server(folder / "standby", fsync="on")

    @property
    def url(self) -> str:
        """The URL that names both."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self._primary, self._standby))
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def start(self) -> None:
        """Start both, and have the primary wait for the standby at each commit from now on."""
        self._primary.create()
        self._primary.start()
        self._standby.copy(self._primary, "standby")
        self._standby.start()
        with psycopg.connect(self._primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            connection.execute("SELECT pg_reload_conf()")
            query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            wait_until(lambda: connection.execute(query).fetchone() == (1,), self._standby.log)

    def lose_primary(self) -> None:
        """End the primary, all of its processes at once."""
        self._primary.kill()

    def take_over(self) -> None:
        """Promote the standby."""
        with psycopg.connect(self._standby.url, autocommit=True) as connection:
            connection.execute("SELECT pg_promote(wait => true)")

    def stop(self) -> None:
        """Stop what runs."""
        for server in (self._standby, self._primary):
            server.stop()


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    """Run a primary and its standby for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="action-retrier-pair-"))
    folder.chmod(0o755)
    servers = Pair(folder)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
        shutil.rmtree(folder, ignore_errors=True)
