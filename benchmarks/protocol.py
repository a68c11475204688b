"""
What each library that is measured is asked to do, and how: one small program each, the same few commands.

``python -m MODULE VARIANT COMMAND URL [ARGUMENT...]`` runs one of them in an environment of the library's own, so this
module needs the standard library only. Answers are lines of JSON. Time is ``time.monotonic_ns``, one clock for all
processes of a machine.

| command                        | does                                                        | answers           |
|--------------------------------|-------------------------------------------------------------|-------------------|
| ``info -``                     |                                                             | what it is        |
| ``enqueue URL COUNT``          | prepares; enqueues no-op tasks one by one, a commit each    | ``seconds``       |
| ``fill URL COUNT KIND``        | prepares; enqueues in the best way for many                 | ``seconds``       |
| ``send URL COUNT S BATCH``     | prepares; enqueues *BATCH* stamped tasks each *S* seconds   | ``seconds``       |
| ``work URL``                   | prints ``ready``; a worker from the line ``go`` on          | ``left``, when asked |
"""

import asyncio
import fcntl
import importlib.metadata
import inspect
import itertools
import json
import logging
import mmap
import os
import platform
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TALLY_VARIABLE = "BENCH_TALLY"
CONSTANTS_VARIABLE = "BENCH_CONSTANTS"
THREADS_VARIABLE = "BENCH_THREADS"
BATCH = 1000  # tasks that are enqueued at once, by everybody
HANGS_S = 3600.0

_SLOTS = 64
_STAMPS = 1 << 17
_COUNTERS = 4  # executions, first start (ns), executions after the kill, stamps
_SLOT_SIZE = (_COUNTERS + _STAMPS) * 8


class PlannedError(Exception):
    """The failure of a task that fails once."""


class Tally:
    """
    What has been executed, counted in a file that the harness reads while it grows: nobody asks the database for it.

    Each process that counts has a slot of its own; the file is sparse.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("a+b") as file:
            if os.fstat(file.fileno()).st_size < _SLOT_SIZE * _SLOTS:
                file.truncate(_SLOT_SIZE * _SLOTS)
            self._map = mmap.mmap(file.fileno(), _SLOT_SIZE * _SLOTS)
        self._numbers = memoryview(self._map).cast("q")

    def slot(self) -> memoryview:
        """Take a slot that no other process has."""
        with self.path.with_suffix(".slots").open("a+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            number = os.fstat(file.fileno()).st_size
            file.write(b"x")
            file.flush()
        assert number < _SLOTS, "more processes than there are slots"
        return self._numbers[number * _SLOT_SIZE // 8 :][: _COUNTERS + _STAMPS]

    def _counters(self, which: int) -> list[int]:
        return [self._numbers[number * _SLOT_SIZE // 8 + which] for number in range(_SLOTS)]

    def executions(self) -> int:
        return sum(self._counters(0))

    def first_start_ns(self) -> int:
        return min(filter(None, self._counters(1)))

    def executions_after_kill(self) -> int:
        return sum(self._counters(2))

    def stamped(self) -> int:
        return sum(self._counters(3))

    def stamps_ms(self) -> list[float]:
        """Return how long each stamped task took from its sender to its first line, in milliseconds."""
        found = []
        for number, count in enumerate(self._counters(3)):
            begin = number * _SLOT_SIZE // 8 + _COUNTERS
            found += [value / 1e6 for value in self._numbers[begin : begin + min(count, _STAMPS)]]
        return found

    @property
    def killed(self) -> Path:
        """The file whose existence says that the first worker has been killed."""
        return self.path.with_suffix(".killed")


class Tasks:
    """What the tasks do: the same for every library, and next to nothing."""

    def __init__(self) -> None:
        given = os.environ.get(TALLY_VARIABLE)
        self._tally = Tally(Path(given)) if given else None
        self._slot: memoryview | None = None
        self._lock = threading.Lock()
        self._failed: set[int] = set()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._slot = None
        self._lock = threading.Lock()

    def count(self, executions: int = 1) -> memoryview:
        with self._lock:
            slot = self._slot
            if slot is None:
                assert self._tally is not None, f"{TALLY_VARIABLE} is not set"
                slot = self._slot = self._tally.slot()
                slot[1] = time.monotonic_ns()
            slot[0] += executions
        return slot

    def noop(self) -> None:
        self.count()

    def fail_once(self, key: int) -> None:
        """Raise at the first execution with a key."""
        self.count()
        if key not in self._failed:
            self._failed.add(key)
            raise PlannedError

    def stamp(self, sent_ns: int) -> None:
        now = time.monotonic_ns()
        slot = self.count()
        with self._lock:
            if slot[3] < _STAMPS:
                slot[_COUNTERS + slot[3]] = now - sent_ns
            slot[3] += 1

    async def hang(self) -> None:
        if self._hangs():
            await asyncio.sleep(HANGS_S)

    def hang_thread(self) -> None:
        if self._hangs():
            time.sleep(HANGS_S)

    def _hangs(self) -> bool:
        slot = self.count()
        assert self._tally is not None
        if not self._tally.killed.exists():
            return True
        with self._lock:
            slot[2] += 1
        return False


tasks = Tasks()


class Peer:
    """A library under measurement. Subclasses say how it is used, at its best."""

    library = ""  # the distribution, for its version
    brings: Sequence[str] = ()  # others whose version matters
    imports = ""  # the statement by which a user's program imports it
    settings: dict[str, str] = {}  # noqa: RUF012 - each subclass has its own, which nobody changes
    lacks = ""  # which of our promises it does not make

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def prepare(self, url: str) -> None:
        """Create the tables, unless they are there."""

    def client(self, url: str) -> Any:
        """
        Return a context manager whose value has ``one(kind, value)`` and ``many(kind, values)``.

        Both are coroutines if the context manager is an asynchronous one. Kinds are the methods of ``Tasks``: ``noop``,
        ``fail_once``, ``stamp``, ``hang``. A value is an integer.
        """
        raise NotImplementedError

    def work(self, url: str, ready: Callable[[], None]) -> Any:
        """Be a worker for ever, a coroutine or not; call *ready* before the first claim. Then it blocks until told."""
        raise NotImplementedError

    def left(self, url: str) -> int:
        """Return how many tasks have not durably ended; any positive number for some."""
        raise NotImplementedError

    @staticmethod
    def threads(default: int) -> int:
        """Return how many threads a library that has threads should have: more, where tasks hang."""
        return int(os.environ.get(THREADS_VARIABLE) or default)

    def info(self) -> dict[str, Any]:
        version = importlib.metadata.version
        return {
            "library": self.library,
            "version": version(self.library) if self.library else "",
            "brings": {name: version(name) for name in self.brings},
            "python": platform.python_version(),
            "imports": self.imports,
            "settings": self.settings,
            "lacks": self.lacks,
        }


def main(make: Callable[[str], Peer]) -> None:
    """Carry out the command line."""
    variant, command, url, *arguments = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    logging.disable(logging.CRITICAL)  # for everybody: a traceback for each planned failure is not what is measured
    for constant in os.environ.get(CONSTANTS_VARIABLE, "").split():
        name, _, value = constant.partition("=")
        program = sys.modules["__main__"]
        setattr(program, name, type(getattr(program, name))(value))
    peer = make("" if variant == "-" else variant)

    def answer(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    if command == "info":
        answer(**peer.info())
    elif command == "work":
        _work(peer, url, answer)
    else:
        peer.prepare(url)
        extra = getattr(peer, f"command_{command.replace('-', '_')}", None)
        steps = None if extra else _COMMANDS[command](arguments)
        answer(**(extra(url, *arguments) if extra else {"seconds": _drive(peer.client(url), steps)}))
    out.flush()
    os._exit(0)  # whatever threads a library leaves behind


def _enqueue(arguments: list[str]) -> Iterator[tuple[str, Any]]:
    for value in range(int(arguments[0])):
        yield "one", ("noop", value)


def _fill(arguments: list[str]) -> Iterator[tuple[str, Any]]:
    count, kind = int(arguments[0]), arguments[1]
    for first in range(0, count, BATCH):
        yield "many", (kind, list(range(first, min(first + BATCH, count))))


def _send(arguments: list[str]) -> Iterator[tuple[str, Any]]:
    count, interval_s, batch = int(arguments[0]), float(arguments[1]), int(arguments[2])
    began = time.monotonic()
    for number in range(count // batch):
        yield "until", began + (number + 1) * interval_s
        now = time.monotonic_ns()
        yield ("one", ("stamp", now)) if batch == 1 else ("many", ("stamp", [now] * batch))


_COMMANDS: dict[str, Callable[[list[str]], Iterator[tuple[str, Any]]]] = {
    "enqueue": _enqueue,
    "fill": _fill,
    "send": _send,
}


def _drive(client: Any, steps: Any) -> float:
    """Have a client do the steps. Returns seconds."""
    if hasattr(client, "__aenter__"):
        return asyncio.run(_drive_async(client, steps))
    with client as opened:
        began = time.monotonic()
        for step, given in steps:
            if step == "until":
                time.sleep(max(0.0, given - time.monotonic()))
            else:
                getattr(opened, step)(*given)
        return time.monotonic() - began


async def _drive_async(client: Any, steps: Any) -> float:
    async with client as opened:
        began = time.monotonic()
        for step, given in steps:
            if step == "until":
                await asyncio.sleep(max(0.0, given - time.monotonic()))
            else:
                await getattr(opened, step)(*given)
        return time.monotonic() - began


def _work(peer: Peer, url: str, answer: Callable[..., None]) -> None:
    def ready() -> None:
        peer.left(url)  # what it needs is open before anything is measured
        answer(ready=True)
        if sys.stdin.readline().strip() != "go":
            os._exit(1)
        threading.Thread(target=listen, daemon=True).start()

    def listen() -> None:
        for _ in itertools.takewhile(bool, iter(sys.stdin.readline, "")):
            answer(left=peer.left(url))
        os._exit(0)  # whoever started this is gone

    working = peer.work(url, ready)
    if inspect.iscoroutine(working):
        asyncio.run(working)


def unpacked(value: bytes) -> int:
    """Return the integer of a payload that :func:`packed` made."""
    return int(struct.unpack("<q", value)[0])


def packed(value: int) -> bytes:
    return struct.pack("<q", value)
