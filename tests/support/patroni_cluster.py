"""A cluster that looks after itself: PostgreSQL under Patroni, which keeps who leads in etcd."""

import contextlib
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import psycopg
from postgres_cluster import running
from postgres_server import VERSION, as_nobody, binaries, free_port, own, wait_until

NODES = 3
TTL_S = 20
"""How long a leader may be silent; Patroni allows no less."""
PATIENCE_S = 90


def why_not() -> str:
    """Return why there cannot be one here; empty if there can."""
    missing = [program for program in ("patroni", "etcd") if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)} (on Debian: apt install patroni etcd-server)" if missing else ""


class Node:
    """A host of the cluster, so to speak: Patroni, and the server that it runs."""

    def __init__(self, folder: Path, etcd: int, settings: dict[str, Any]) -> None:
        own(folder)
        self.log = folder / "log"
        self.port, self._api = free_port(), free_port()
        (folder / "passwords").touch()
        shutil.chown(folder / "passwords", folder.owner(), folder.group())
        (folder / "passwords").chmod(0o600)
        settings = {
            **settings,
            "scope": "tests",
            "name": folder.name,
            "restapi": {"listen": f"127.0.0.1:{self._api}", "connect_address": f"127.0.0.1:{self._api}"},
            "etcd3": {"hosts": f"127.0.0.1:{etcd}"},
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(folder / "data"),
                "bin_dir": str(binaries(VERSION)),
                "pgpass": str(folder / "passwords"),
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
                "authentication": {
                    "superuser": {"username": "postgres", "password": "postgres"},
                    "replication": {"username": "replicator", "password": "replicator"},
                },
                "parameters": {"unix_socket_directories": str(folder), "max_connections": 200},
            },
        }
        (folder / "patroni.json").write_text(json.dumps(settings))  # which is YAML too
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                # A Patroni that is told to stop stops its server too, which is nobody's child.
                [*as_nobody("TERM"), "patroni", str(folder / "patroni.json")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def is_(self, role: str) -> bool:
        """Ask Patroni whether this is a ``primary``, a ``sync`` standby, ..."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._api}/{role}", timeout=2):
            return True
        return False

    def takes_writes(self) -> bool:
        """Tell whether its server is a primary."""
        url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres?connect_timeout=2"
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url) as connection:
            return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        return False

    def lose(self) -> None:
        """End all of its processes at once, as when its host dies."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            everything = [parent, *parent.children(recursive=True)]
            # The server itself is nobody's child: Patroni lets it live on without it.
            listening = [one for one in psutil.net_connections("tcp") if one.laddr and one.laddr.port == self.port]
            servers = {one.pid for one in listening if one.status == psutil.CONN_LISTEN and one.pid}
            for pid in servers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    server = psutil.Process(pid)
                    everything += [server, *server.children(recursive=True)]
            for one in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.suspend()
            for one in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self._process.wait()


class Patroni:
    """Three nodes and an etcd, which decide by themselves who leads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: list[Node] = []
        self._etcd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL that names all of them."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self._nodes)
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def start(self) -> None:
        """Start all, and wait until commits wait for a standby."""
        port = self._start_etcd()
        bootstrap = {
            "dcs": {
                "ttl": TTL_S,
                "loop_wait": 1,
                "retry_timeout": 5,
                "synchronous_mode": True,
                "postgresql": {"parameters": {"synchronous_commit": "on"}},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, {"auth": "trust"}],
        }
        for number in range(NODES):
            self._nodes.append(Node(self._folder / f"node{number}", port, {"bootstrap": bootstrap}))
        wait_until(lambda: self._has("primary") and self._has("sync"), self._logs, PATIENCE_S)

    def _start_etcd(self) -> int:
        folder = self._folder / "etcd"
        own(folder)
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        with (folder / "log").open("ab") as log:
            self._etcd = subprocess.Popen(
                [
                    *as_nobody(),
                    "etcd",
                    *("--data-dir", str(folder / "data")),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        return int(client.rpartition(":")[2])

    def _has(self, role: str) -> Node | None:
        return next((node for node in self._nodes if node.is_(role)), None)

    def _logs(self) -> str:
        return "\n".join(node.log.read_text("utf-8", "replace")[-3000:] for node in self._nodes)

    def lose_primary(self) -> None:
        """End the leader, Patroni and server."""
        leader = self._has("primary")
        assert leader is not None, self._logs()
        leader.lose()

    def take_over(self) -> None:
        """Wait until one of the others has been made the leader."""
        wait_until(lambda: any(node.takes_writes() for node in self._nodes), self._logs, PATIENCE_S)

    def stop(self) -> None:
        """End everything."""
        for node in self._nodes:
            node.lose()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()


def patroni() -> contextlib.AbstractContextManager[Patroni]:
    """Run a cluster for as long as the block lasts."""
    return running(Patroni, "patroni")
