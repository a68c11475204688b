"""
A network between clients and a PostgreSQL server that goes wrong as it is told.

It understands as much of the protocol as it takes to recognise a COMMIT, however it is sent, and the end of its answer. A
statement outside of a transaction commits itself.
"""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self
from urllib.parse import urlsplit

_SSL_REQUEST, _GSS_REQUEST = 80_877_103, 80_877_104
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_CHUNK = 65_536
_WRITES = re.compile(rb"\b(INSERT INTO|DELETE FROM|UPDATE\s+\S+(\s+AS\s+\S+)?\s+SET)\b", re.IGNORECASE)
_CONTROL = re.compile(rb"\s*(BEGIN|COMMIT|ROLLBACK(?!\s+TO))\b", re.IGNORECASE)


def writes(transaction: bytes) -> bool:
    """Tell whether statements change what is stored, if they find it."""
    return _WRITES.search(transaction) is not None


class _Framer:
    """Cuts one direction of a connection into messages; a client's first one has no type."""

    def __init__(self, *, typed: bool) -> None:
        self._buffer = b""
        self.typed = typed

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Return what is complete by now."""
        self._buffer += data
        while True:
            head = 1 if self.typed else 0
            if len(self._buffer) < head + 4:
                return
            end = head + int.from_bytes(self._buffer[head : head + 4])
            if len(self._buffer) < end:
                return
            message, self._buffer = self._buffer[:end], self._buffer[end:]
            yield message


class _Link:
    """One client's connection, and the one to the server for it."""

    def __init__(self, proxy: "Proxy", client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = socket.create_connection(proxy.server)
        for one in (client, self._server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loses = False
        self._is_half_open = False
        self._is_begun = False
        self._prepared: dict[bytes, bytes] = {}
        self._said: list[bytes] = []
        """The texts of the statements since the last COMMIT."""
        self._at_stake = b""
        self._changed = 0
        """How many rows have been written since the last BEGIN, or by what commits itself."""
        for pump in (self._pump_requests, self._pump_answers):
            threading.Thread(target=self._run, args=(pump,), daemon=True).start()

    def _run(self, pump: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            pump()
        if not self._is_half_open:
            self.cut()

    def _pump_requests(self) -> None:
        framer = _Framer(typed=False)
        while data := self._client.recv(_CHUNK):
            for message in framer.feed(data):
                if not framer.typed and int.from_bytes(message[4:8]) in {_SSL_REQUEST, _GSS_REQUEST}:
                    self._client.sendall(b"N")
                    continue
                if framer.typed and self._commits(message):
                    self._at_stake = self._take_said()
                    if self._proxy.loses(self._at_stake):
                        if self._proxy.loses_request:
                            self._count_loss()
                            return
                        self._loses = True  # before the server can answer
                framer.typed = True
                if not self._is_half_open:
                    self._proxy.pass_on(self._server, message)

    def _commits(self, message: bytes) -> bool:
        """Note what a message executes, and tell whether that commits."""
        kind, body = message[:1], message[5:]
        match kind:
            case b"Q":
                text = body
            case b"P":  # a name, then the text
                name, _, text = body.partition(b"\0")
                self._prepared[name] = text
                return False
            case b"B":  # a portal, then the name of a statement
                text = self._prepared.get(body.split(b"\0")[1], b"")
            case _:
                return False
        self._said.append(text)
        control = _CONTROL.match(text)
        if control is not None:
            self._is_begun = control[1].upper() == b"BEGIN"
            return control[1].upper() == b"COMMIT"
        if not self._is_begun:
            self._changed = 0
        return not self._is_begun

    def _take_said(self) -> bytes:
        said, self._said = b"\n".join(self._said), []
        return said

    def _pump_answers(self) -> None:
        framer = _Framer(typed=True)
        while data := self._server.recv(_CHUNK):
            for message in framer.feed(data):
                if message[:1] == b"C":
                    self._note_done(message[5:-1])
                if not self._loses:
                    self._proxy.pass_on(self._client, message)
                elif message[:1] == b"Z":  # ready for the next query: it has committed, or failed
                    self._count_loss()
                    return

    def _note_done(self, tag: bytes) -> None:
        """Take in what a statement has done, and to how many rows."""
        verb, rows = tag.split()[0], tag.split()[-1]
        if verb in {b"BEGIN", b"ROLLBACK"}:
            self._changed = 0
        elif verb in {b"INSERT", b"UPDATE", b"DELETE"} or (verb == b"SELECT" and _WRITES.search(self._last_said())):
            self._changed += int(rows)

    def _last_said(self) -> bytes:
        return self._said[-1] if self._said else self._at_stake

    def _count_loss(self) -> None:
        """Count it, if there was something that could be in doubt."""
        if self._changed:
            self._proxy.count_loss(self._at_stake)

    def half_open(self) -> None:
        """Reset the connection on the server's side; the client is not told, and speaks to nobody."""
        self._is_half_open = True
        with contextlib.suppress(OSError):
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._server.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Reset the connection, on both sides."""
        for one in (self._client, self._server):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._proxy.forget(self)


class Proxy:
    """
    Listens on a port of its own, and passes on what it may.

    Attributes:
        loses: Asked at each COMMIT, and at each statement that commits itself, with the texts of the statements since the last one,
            whether its answer gets lost; then the connection is cut.
        loses_request: Whether it is the COMMIT itself that gets lost, and not its answer.
        refuses: Whether new connections are closed at once.
        latency_s: How long each message takes.
        lost: How many have been lost that had written something.
        on_loss: Told of each of those, with the texts of the statements.
        url: The URL that leads through it.
    """

    def __init__(self, url: str) -> None:
        """Stand before the server that *url* names."""
        self._url = urlsplit(url)
        self.server = (self._url.hostname or "127.0.0.1", self._url.port or 5432)
        self.loses: Callable[[bytes], bool] = lambda _: False
        self.loses_request = False
        self.refuses = False
        self.latency_s = 0.0
        self.lost = 0
        self.on_loss: Callable[[bytes], None] = lambda _: None
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = int(self._listening.getsockname()[1])
        self.url = self._url._replace(netloc=f"postgres@127.0.0.1:{self.port}").geturl()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.refuses:
                    client.close()
                    continue
                try:
                    link = _Link(self, client)
                except OSError:  # the server is away
                    client.close()
                    continue
                with self._lock:
                    self._links.add(link)

    def pass_on(self, to: socket.socket, message: bytes) -> None:
        """Send a message, when it is its time."""
        if self.latency_s:
            time.sleep(self.latency_s)
        self._flows.wait()
        to.sendall(message)

    def count_loss(self, transaction: bytes) -> None:
        """Note that the COMMIT of something written, or its answer, has been lost."""
        with self._lock:
            self.lost += 1
            self.on_loss(transaction)

    def forget(self, link: _Link) -> None:
        """Note that a connection has ended."""
        with self._lock:
            self._links.discard(link)

    def swallow(self) -> None:
        """Take in whatever is sent, new connections too, and pass nothing on: nobody is told that anything is wrong."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass on everything again, what was held back first."""
        self._flows.set()

    def half_open(self) -> None:
        """Have the server lose all connections, and no client hear of it until the next cut; new ones are welcome."""
        for link in self._current():
            link.half_open()

    def cut(self) -> None:
        """Reset all connections; new ones are welcome."""
        for link in self._current():
            link.cut()

    def _current(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def close(self) -> None:
        """Let go of everything."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.flow()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
