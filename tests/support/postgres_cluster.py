"""A primary with a synchronous standby: what is acknowledged is on both."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import psycopg
from postgres_server import Server, wait_until


class Stoppable(Protocol):
    """What is started, and stopped."""

    def start(self) -> object:
        """Begin."""

    def stop(self) -> None:
        """End everything."""


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


C = TypeVar("C", bound=Stoppable)


@contextlib.contextmanager
def running(make: Callable[[Path], C], name: str) -> Iterator[C]:
    """Run what *make* makes in a folder that others may enter, and that is gone after the block."""
    folder = Path(tempfile.mkdtemp(prefix=f"action-retrier-{name}-"))
    folder.chmod(0o755)
    made = make(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def pair() -> contextlib.AbstractContextManager[Pair]:
    """Run a primary and its standby for as long as the block lasts."""
    return running(Pair, "pair")
