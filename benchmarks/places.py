"""Databases to measure on: a new one for each sample, on servers that are started when first needed."""

import contextlib
import os
import secrets
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.environments import UnavailableError
from tests.support.postgres_server import ends_with_us, free_port, running_server


@dataclass(frozen=True)
class Place:
    """A database that nobody else uses."""

    url: str
    vacuum: Callable[[], None]
    server_pid: int | None = None


class Places:
    """Where databases come from; its servers run until it is closed."""

    def __init__(self, directory: Path | None = None) -> None:
        """
        Start nothing yet.

        Args:
            directory: Where SQLite's and Redis's files are; PostgreSQL's are in the system's directory for such files.
        """
        self.directory = directory
        self._stack = contextlib.ExitStack()
        self._servers: dict[str, Any] = {}

    def close(self) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def new(self, database: str, server: str = "") -> Iterator[Place]:
        """
        Lend a new database.

        Args:
            database: sqlite, postgres or redis.
            server: One of several servers of a kind, by any name.
        """
        make = {"sqlite": self._new_file, "postgres": self._new_database, "redis": self._new_redis}[database]
        with make(server) as place:
            yield place

    def postgres_version(self) -> str:
        with psycopg.connect(self._postgres("").url) as connection:
            return str(connection.execute("SHOW server_version").fetchone()[0])  # type: ignore[index]

    @contextlib.contextmanager
    def _new_file(self, _: str) -> Iterator[Place]:
        folder = Path(tempfile.mkdtemp(prefix="bench-", dir=self.directory))
        try:
            yield Place(f"sqlite:///{folder / 'bench.db'}", lambda: None)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _postgres(self, name: str) -> Any:
        key = f"postgres {name}"
        if key not in self._servers:
            # A minute is the default between two autovacuums; five seconds were too kind to whoever makes garbage.
            self._servers[key] = self._stack.enter_context(running_server(fsync="on"))
        return self._servers[key]

    @contextlib.contextmanager
    def _new_database(self, server_name: str) -> Iterator[Place]:
        server = self._postgres(server_name)
        name = f"bench_{secrets.token_hex(4)}"
        url = f"{server.url.rpartition('/')[0]}/{name}"

        def vacuum() -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")

        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
            try:
                yield Place(url, vacuum, server.pid)
            finally:
                # It makes a checkpoint as well, so that each sample begins with one behind it.
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    @contextlib.contextmanager
    def _new_redis(self, _: str) -> Iterator[Place]:
        program = redis_server()
        port = free_port()
        folder = Path(tempfile.mkdtemp(prefix="bench-redis-", dir=self.directory))
        options = {"port": port, "dir": folder, "appendonly": "yes", "appendfsync": "everysec", "save": ""}
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        process = subprocess.Popen([*ends_with_us(), program, *arguments], stdout=subprocess.DEVNULL)
        try:
            _wait_until_it_answers(port)
            yield Place(f"redis://127.0.0.1:{port}/0", lambda: None, process.pid)
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def redis_server() -> str:
    found = shutil.which("redis-server")
    if found is None:
        raise UnavailableError("there is no redis-server on the PATH")
    return found


def redis_version() -> str | None:
    program = shutil.which("redis-server")
    if program is None:
        return None
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return next((word.removeprefix("v=") for word in words if word.startswith("v=")), "unknown")


def _wait_until_it_answers(port: int) -> None:
    import socket  # noqa: PLC0415 - for Redis only

    give_up_at = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(5).startswith(b"+PONG"):
                return
        if time.monotonic() > give_up_at:
            raise UnavailableError("redis-server does not answer")
        time.sleep(0.01)


@contextlib.contextmanager
def held_transaction(url: str) -> Iterator[None]:
    """Keep a transaction open that has begun and looked: nothing that it might still see can be removed."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            yield
        return
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_current_xact_id()")  # it has written, for all that others know
        connection.execute("DECLARE held CURSOR FOR SELECT * FROM pg_class")  # and its snapshot stays
        yield


def fsync_us(directory: Path | None, count: int = 200) -> float:
    """Return the median cost of writing 4 KiB at the end of a file and of waiting for the disk, in microseconds."""
    taken = []
    handle, name = tempfile.mkstemp(dir=directory)
    try:
        for _ in range(count):
            began = time.perf_counter()
            os.write(handle, bytes(4096))
            os.fsync(handle)
            taken.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(handle)
        Path(name).unlink()
    return sorted(taken)[count // 2]
