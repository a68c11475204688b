"""Hosts on one machine: network namespaces, with a cable from each to the database's."""

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_SUBNET = "10.203"
NETWORK = f"{_SUBNET}.0.0/16"
"""Where all of their addresses are; nothing of it is seen outside of the namespaces."""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str:
    """Return why there cannot be hosts here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("setpriv") is None:
        return "network namespaces need ip (iproute2) and setpriv (util-linux)"
    probe = f"art-{secrets.token_hex(4)}"
    try:
        _ip("netns", "add", probe)
    except OSError as error:
        return f"this machine has no network namespaces for us: {error}"
    _ip("netns", "delete", probe)
    return ""


@dataclass(frozen=True, slots=True)
class Host:
    """
    A namespace.

    Attributes:
        name: Of the namespace.
        database: The address at which the database's host is reached from it.
        cable: The database's end of its cable.
    """

    name: str
    database: str
    cable: str
    hub: str

    @property
    def under(self) -> list[str]:
        """What a command is put under to run on this host."""
        return under(self.name)

    def unplug(self) -> None:
        """Have packets vanish, in both directions; nobody is told."""
        _ip("-n", self.hub, "link", "set", self.cable, "down")

    def plug_in(self) -> None:
        """Mend the cable."""
        _ip("-n", self.hub, "link", "set", self.cable, "up")


def under(namespace: str) -> list[str]:
    """Return what a command is put under to run in a namespace."""
    return ["ip", "netns", "exec", namespace]


@contextlib.contextmanager
def hosts(count: int) -> Iterator[tuple[str, list[Host]]]:
    """Lay out a host for the database, and *count* others with a cable to it; yields the first one's name and those."""
    mark = secrets.token_hex(3)
    hub = f"art-{mark}-db"
    made = []
    try:
        for name in (hub, *(f"art-{mark}-{number}" for number in range(1, count + 1))):
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        found = []
        for number, name in enumerate(made[1:], 1):
            near, far = f"a{mark}d{number}", f"a{mark}h{number}"
            _ip("link", "add", near, "netns", hub, "type", "veth", "peer", "name", far, "netns", name)
            for namespace, end, address in ((hub, near, 1), (name, far, 2)):
                _ip("-n", namespace, "address", "add", f"{_SUBNET}.{number}.{address}/24", "dev", end)
                _ip("-n", namespace, "link", "set", end, "up")
            found.append(Host(name, f"{_SUBNET}.{number}.1", near, hub))
        yield hub, found
    finally:
        for name in reversed(made):
            with contextlib.suppress(OSError):
                _ip("netns", "delete", name)
