"""What clients of the crash tests were told: a log of each call's invocation and answer, which survives them."""

import bisect
import itertools
import json
import math
import os
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearizability import UNKNOWN, Operation

_LOG = "told.log"


class Teller:
    """Writes the log, a line a write; one for each process, whose threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / _LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._process = f"{os.getpid()}-{secrets.token_hex(3)}"
        self._numbers = itertools.count()

    def invoke(self, what: str, about: str, **details: Any) -> str:
        """Note that a call begins, and return by what its answer refers to it."""
        call = f"{self._process}-{next(self._numbers)}"
        self._write("invoked", call, what, about, details)
        return call

    def intend(self, call: str, run_ids: list[str]) -> None:
        """Note what a start in an open transaction has returned: nothing of it has happened yet."""
        self._write("intended", call, run_ids)

    def answer(self, call: str, answer: str | list[str]) -> None:
        """Note what the caller was told: of a start the ids, or ``rolled back``; `UNKNOWN` after an error."""
        self._write("answered", call, answer)

    def _write(self, *told: Any) -> None:
        os.write(self._descriptor, json.dumps([time.monotonic_ns() // 1000, *told]).encode() + b"\n")

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)


@dataclass
class Batch:
    """Runs that were started together, under one tag: all of them exist, or none."""

    count: int
    fate: str = UNKNOWN
    """``started``, ``rolled back`` or unknown."""


class Writes:
    """Writes that clients know to have been committed: when they were begun and over, by the monotonic clock."""

    def __init__(self) -> None:
        self._known: list[tuple[float, float]] = []
        self._begun: list[float] = []
        self._over: list[float] = []

    def add(self, begun: float, over: float) -> None:
        """Take in one."""
        self._known.append((begun, over))
        self._begun = []

    def over_by(self, instant: float) -> float:
        """Return when the first was over of those that were begun after an instant."""
        if not self._begun:
            self._known.sort()
            self._begun = [begun for begun, _ in self._known]
            backwards = itertools.accumulate((over for _, over in reversed(self._known)), min)
            self._over = [*backwards][::-1]
        place = bisect.bisect_right(self._begun, instant)
        return self._over[place] if place < len(self._over) else math.inf


@dataclass
class Told:
    """What all clients together were told."""

    acknowledged: set[str] = field(default_factory=set)
    rolled_back: set[str] = field(default_factory=set)
    batches: dict[str, Batch] = field(default_factory=dict)
    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The ids that were returned for an idempotency key."""
    operations: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    """The calls about a run, in microseconds of the monotonic clock."""
    writes: Writes = field(default_factory=Writes)
    calls: int = 0
    unanswered: int = 0


def read_told(folder: Path) -> Told:
    """Read the log that clients have written in *folder*."""
    told = Told()
    open_calls: dict[str, list[Any]] = {}
    if not (folder / _LOG).exists():
        return told
    with (folder / _LOG).open(encoding="ascii") as log:
        for line in log:
            if not line.endswith("\n"):
                continue
            at, event, call, *more = json.loads(line)
            if event == "invoked":
                open_calls[call] = [at, [], *more]
                told.calls += 1
            elif event == "intended":
                open_calls[call][1] = more[0]
            else:
                _take_in(told, open_calls.pop(call), at, more[0])
    for one in open_calls.values():
        _take_in(told, one, None, UNKNOWN)
    return told


def _take_in(told: Told, invoked: list[Any], answered: int | None, answer: Any) -> None:
    at, intended, what, about, details = invoked
    told.unanswered += answer == UNKNOWN
    if what != "start":
        until = float("inf") if answered is None or answer == UNKNOWN else answered
        told.operations[about].append(Operation(what, answer, at, until))
        return
    batch = told.batches.setdefault(about, Batch(details["count"]))
    if answer == "rolled back":
        batch.fate = answer
        told.rolled_back.update(intended)
    elif answer != UNKNOWN:
        batch.fate = "started"
        told.acknowledged.update(answer)
        if details.get("key") is not None:
            told.keys[details["key"]].update(answer)
        elif answered is not None:  # of a key that was known nothing is written
            told.writes.add(at, answered)
