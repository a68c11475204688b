"""What the witnesses say: the shop's journal, the receiver's ledger, the database."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from action_retrier import Run


@dataclass(frozen=True, slots=True)
class Started:
    """The shop's word: it started this run, and its transaction committed or was rolled back."""

    run: str
    event: str
    order: str
    committed: bool


@dataclass(frozen=True, slots=True)
class CancelCall:
    """The shop's word: it canceled this run when it was in this state, and got this answer."""

    run: str
    state: str
    answer: bool


@dataclass(frozen=True, slots=True)
class Journal:
    """All that the shop wrote down."""

    started: tuple[Started, ...] = ()
    cancels: tuple[CancelCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """The receiver's word: this reached it, and this is what it did."""

    event: str
    key: str
    answer: str
    effect: bool
    duplicate: bool
    intact: bool
    at: float
    """When it arrived, by the receiver's clock, in seconds."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The database's word on one run."""

    id: str
    state: str
    executions: int
    lost: int
    callback_state: str


@dataclass(frozen=True, slots=True)
class LogRow:
    """A row that a callback wrote."""

    run: str
    event: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the verdict is based on."""

    journal: Journal
    ledger: tuple[Delivery, ...]
    runs: tuple[StoredRun, ...]
    log: tuple[LogRow, ...]
    orders: Mapping[str, int]
    """How many events each order in the database has seen."""

    failing_callback_tries: int
    """How often the body of the callback ran that fails its first tries."""


def read_journal(lines: Iterable[str]) -> Journal:
    """Read what the shop wrote on its standard output."""
    entries = [json.loads(line) for line in lines]
    return Journal(
        tuple(
            Started(entry["start"], entry["event"], entry["order"], entry["committed"])
            for entry in entries
            if "start" in entry
        ),
        tuple(CancelCall(entry["cancel"], entry["state"], entry["answer"]) for entry in entries if "cancel" in entry),
    )


def read_ledger(path: Path) -> tuple[Delivery, ...]:
    """Read what the receiver wrote down."""
    with path.open(encoding="utf-8") as file:
        return tuple(_delivery(json.loads(line)) for line in file)


def _delivery(line: dict[str, Any]) -> Delivery:
    return Delivery(
        line["event"], line["key"], line["answer"], line["effect"], line["duplicate"], line["intact"], line["at"]
    )


def stored(run: Run) -> StoredRun:
    """What the verdict needs to know of one run."""
    lost = sum(attempt.error_type == "WorkerLost" for attempt in run.attempts)
    return StoredRun(run.id, run.state, len(run.attempts), lost, run.callback.state if run.callback else "missing")
