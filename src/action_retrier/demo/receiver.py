"""
The other side: an HTTP receiver that fails as planned and keeps a ledger of what reached it.

    python -m action_retrier.demo.receiver --seed 1 --ledger ledger.jsonl

It prints `{"port": ...}` when it listens, and leaves when its standard input ends. A delivery takes
effect once per `Idempotency-Key`, as a receiver should see to it.
"""

import argparse
import json
import re
import socket
import struct
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from .plan import CLIENT_TIMEOUT_MS, STALL_ALWAYS, Answer, Event, Plan, load_events, make_plan

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with a linger time of 0: close() drops what is unsent and sends RST instead of FIN."""

HELD_AT_LEAST_S = 0.3
"""A request counts as held if it will stay unanswered for at least so long."""


class Ledger:
    """What reached the receiver and what became of it, one JSON line each, written before the answer."""

    def __init__(self, path: Path, plan: Plan, originals: dict[str, Event]) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._plan = plan
        self._originals = originals
        self._lock = Lock()
        self._deliveries: Counter[str] = Counter()
        self._in_effect: set[str] = set()

    def receive(self, key: str, event: Event, pid: int) -> Answer:
        """Enter one delivery, let it take effect if it is to, and say what to answer."""
        name = event.get("id", "")
        with self._lock:
            self._deliveries[key] += 1
            answer = self._plan.answer(name, self._deliveries[key])
            effect = answer.takes_effect and key not in self._in_effect
            if effect:
                self._in_effect.add(key)
            line = {
                "event": name,
                "key": key,
                "delivery": self._deliveries[key],
                "at": time.time(),
                "pid": pid,
                "answer": answer.name,
                "effect": effect,
                "duplicate": answer.takes_effect and not effect,
                "intact": event == self._originals.get(name),
            }
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        return answer

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Held:
    """Which clients wait for an answer right now, and until when."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._until: dict[object, tuple[int, float]] = {}

    def hold(self, pid: int, answer: Answer) -> None:
        """Keep the client waiting for this answer."""
        token = object()
        # What is stalled always is about to be canceled: a kill that hits nothing else would prove nothing.
        if answer is not STALL_ALWAYS:
            with self._lock:
                self._until[token] = (pid, time.monotonic() + min(answer.hold_ms, CLIENT_TIMEOUT_MS) / 1000)
        time.sleep(answer.hold_ms / 1000)
        with self._lock:
            self._until.pop(token, None)

    def count(self) -> Counter[int]:
        """How many requests of each client process will stay unanswered for a while yet."""
        soon = time.monotonic() + HELD_AT_LEAST_S
        with self._lock:
            return Counter(pid for pid, until in self._until.values() if until > soon)


class Handler(BaseHTTPRequestHandler):
    """`POST /webhooks` takes an event; `GET /held` tells who waits."""

    server: "Receiver"

    def do_POST(self) -> None:
        """Receive one delivery, well or badly."""
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pid = _pid(self.headers.get("User-Agent", ""))
        answer = self.server.ledger.receive(self.headers["Idempotency-Key"], event, pid)
        if answer.hold_ms:
            self.server.held.hold(pid, answer)
        try:
            self._reply(answer)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # The client had waited long enough, or was killed.

    def do_GET(self) -> None:
        """Say how many requests of which client process are being held."""
        self._send(200, {str(pid): count for pid, count in self.server.held.count().items()})

    def _reply(self, answer: Answer) -> None:
        if answer.reset:
            self._reset(mid_reply=answer.takes_effect)
        elif answer.status == 200:
            self._send(200, {"received": True})
        elif answer.retry_after_s is not None:
            self._send(answer.status, {"error": "too many requests"}, {"Retry-After": str(answer.retry_after_s)})
        else:
            self._send(answer.status, {"error": "unknown field" if answer.status == 400 else "internal error"})

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(encoded)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(encoded)

    def _reset(self, *, mid_reply: bool) -> None:
        if mid_reply:
            self.wfile.write(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{"recei')
            time.sleep(0.02)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.rfile.close()  # It holds the socket open, and the server would send FIN before it closes it.
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Keep quiet: the ledger says it."""


class Receiver(ThreadingHTTPServer):
    """The server with its ledger."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ledger = ledger
        self.held = Held()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that vanishes before it has said anything is no news."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _pid(user_agent: str) -> int:
    found = re.search(r"pid (\d+)", user_agent)
    return int(found[1]) if found else 0


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    options = parser.parse_args()
    events = load_events()
    receiver = Receiver(
        Ledger(options.ledger, make_plan(options.seed, events), {event["id"]: event for event in events})
    )
    Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    print(json.dumps({"port": receiver.server_address[1]}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
