"""
Leases in the simulation: the drivers' own modules, a copy for each process, on a simulated machine below.

What decides who is dead is the library's code, not a re-telling. Below it, and made up here, are the lock files of a
host that all processes share (`Files`), and a session with a server that processes on many hosts reach by a network
that may fail (`Line`).
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from action_retrier._statements import Rows, Statement
from action_retrier.errors import DatabaseUnavailable

from .loop import Lane
from .process import Process

DEADLINE_S = 5.0
"""How long a call waits for a server that does not answer."""
_NEW_SESSION_S = 0.25


@cache
def _code(driver: str) -> tuple[ModuleSpec, CodeType]:
    name = f"action_retrier.drivers.{driver}.leases"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    code = spec.loader.get_code(name)  # type: ignore[union-attr]
    return spec, code


def copy_of(driver: str) -> ModuleType:
    """Return the leases of a driver as a process of its own would have imported them."""
    spec, code = _code(driver)
    module = importlib.util.module_from_spec(spec)
    exec(code, module.__dict__)  # noqa: S102 - our own source
    return module


class Files:
    """The lock files of a host."""

    def __init__(self) -> None:
        self.content: dict[str, str] = {}
        self.holder: dict[str, Process] = {}

    def forget(self, process: Process) -> None:
        """Free what a dead process held."""
        for name in [name for name, holder in self.holder.items() if holder is process]:
            del self.holder[name]

    def remove(self, name: str) -> None:
        self.content.pop(name, None)
        self.holder.pop(name, None)


class _Path:
    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self.name = name
        self.stem = name.removesuffix(".lock")

    def unlink(self) -> None:
        if self.name not in self._files.content:
            raise FileNotFoundError
        self._files.remove(self.name)


class _Folder:
    def __init__(self, files: Files) -> None:
        self._files = files

    def mkdir(self, **_: Any) -> None:
        pass

    def __truediv__(self, name: str) -> _Path:
        return _Path(self._files, name)

    def glob(self, _: str) -> list[_Path]:
        return [self / name for name in self._files.content]


class _File:
    def __init__(self, files: Files, process: Process, path: _Path) -> None:
        self._files = files
        self._process = process
        self.path = path
        files.content.setdefault(path.name, "")

    def acquire_now(self) -> bool:
        return self._files.holder.setdefault(self.path.name, self._process) is self._process

    def write(self, text: str) -> None:
        self._files.content[self.path.name] = text


def on_host(files: Files, process: Process) -> Any:
    """Return SQLite's leases for a process."""
    module: Any = copy_of("sqlite")
    opened: set[str] = set()

    def lock_file(path: _Path) -> _File:
        opened.add(path.name)
        return _File(files, process, path)

    def close_lock_file(path: _Path, *, remove: bool) -> None:
        if path.name in opened:
            opened.discard(path.name)
            files.holder.pop(path.name, None)
            if remove:
                files.remove(path.name)

    def probe(path: _Path) -> tuple[bool, str] | None:
        content = files.content.get(path.name)
        return None if content is None else (path.name not in files.holder, content)

    module.boot_time_us = process.monotonic_us
    module.lock_file = lock_file
    module.close_lock_file = close_lock_file
    module.held_here = lambda path: path.name in opened

    def untouched_for(us: int, paths: list[_Path]) -> list[_Path]:
        return [path for path in paths if process.monotonic_us() - int(files.content[path.name] or 0) > us]

    module.probe = probe
    module.untouched_for = untouched_for
    process.on_death.append(lambda: files.forget(process))
    return module.SqliteLeases(_Folder(files))


class Sessions:
    """What a server knows of sessions and leases."""

    def __init__(self, *, direct: bool) -> None:
        self.direct = direct
        self.renewed_us: dict[str, int] = {}
        self.is_direct: dict[str, bool] = {}
        self.holder: dict[int, object] = {}
        self.free_since_s: dict[int, float] = {}

    def take(self, key: int, session: object) -> bool:
        self.free_since_s.pop(key, None)
        return self.holder.setdefault(key, session) is session

    def end(self, session: object, now_s: float) -> None:
        """Free what an ended session held."""
        for key in [key for key, holder in self.holder.items() if holder is session]:
            del self.holder[key]
            self.free_since_s[key] = now_s


class Line:
    """A session with the server that holds a process's advisory locks; see the driver's `Line`."""

    def __init__(self, server: Any, process: Process) -> None:
        self._server = server
        self._process = process
        self._session: object | None = None
        self._locks: set[int] = set()
        self._was_open = False
        self._reopened_at_us: int | None = None
        self.reopened_at_s: float | None = None
        """The same by the world's clock, for the oracle."""
        self._retries = False
        self._lane = Lane(process)  # it is watched by a thread of its own
        process.adopt(self._lane)

    def is_steady(self, for_us: int) -> bool:
        now = self._process.monotonic_us()
        return self._session is not None and (self._reopened_at_us is None or now - self._reopened_at_us >= for_us)

    def lock(self, key: int) -> None:
        self._locks.add(key)
        with self.connection():
            self._take()

    def unlock(self, key: int) -> None:
        self._locks.discard(key)
        if self.holds(key):
            del self._server.sessions.holder[key]
            self._server.sessions.free_since_s[key] = self._process.loop.now_s

    def holds(self, key: int) -> bool:
        return self._session is not None and self._server.sessions.holder.get(key) is self._session

    @contextlib.contextmanager
    def connection(self) -> Iterator["Line"]:
        process = self._process
        process.loop.block(process.rng.random() * 0.01)
        if not self._server.reachable(process):
            process.loop.block(DEADLINE_S * process.rng.random())
            self.drop()
            raise DatabaseUnavailable(problem="the server does not answer", remedy="wait")
        if self._session is None:
            self._open()
        yield self

    transaction = contextlib.nullcontext

    def _open(self) -> None:
        self._session = object()
        self._server.lines[self._session] = self
        if self._was_open:
            self._reopened_at_us = self._process.monotonic_us()
            self.reopened_at_s = self._process.loop.now_s
        self._was_open = True
        self._take()

    def _take(self) -> None:
        if self._server.sessions.direct:
            taken = [self._server.sessions.take(key, self._session) for key in sorted(self._locks)]
            if not all(taken):
                self._try_again()  # a session before this one, which the server has not given up yet, has it

    def drop(self) -> None:
        """Notice that the session has ended."""
        self._session = None
        self._try_again()

    def lost(self, session: object) -> None:
        """Be told by the network that a session has ended."""
        if self._session is session:
            self.drop()

    def _try_again(self) -> None:
        if not self._retries and self._locks:
            self._retries = True
            loop = self._process.loop
            loop.call_on(self._lane, _NEW_SESSION_S * (0.5 + loop.rng.random()), self._watch)

    def _watch(self) -> None:
        self._retries = False
        if not self._server.reachable(self._process):
            self._try_again()
        elif self._session is None:
            self._open()
        else:
            self._take()


def on_server(server: Any, process: Process, read: Any) -> Any:
    """Return PostgreSQL's leases for a process."""
    module: Any = copy_of("postgres")
    line = server.line_of[process] = Line(server, process)

    def execute(_: Line, statement: Statement, *__: Any) -> Rows:
        return server.lease_rows(statement)

    module.boot_time_us = process.monotonic_us
    module.execute = execute
    return module.PostgresLeases(SimpleNamespace(schema="", direct=True), line, read)
