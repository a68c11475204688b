"""What of a run's story its callers can be told: the steps that `linearizability` judges their answers by."""

import math
from collections.abc import Iterator
from typing import Any

from crash_rules import COMPLETED, is_retry
from crash_told import Writes
from linearizability import GONE, IN_PROGRESS, Step

EARLY_US = 100_000
"""How much clocks may disagree: that of the database and that of the clients."""
OPEN_US = 60_000_000
"""For longer than this no transaction stays open, whoever is stopped or cut off in it, and however long the server is away."""


def steps(changes: list[dict[str, Any]], writes: Writes, clocks_apart_us: int, seen_after_us: int) -> list[Step]:
    """
    Return what of a run's changes callers may see, each with the instants between which it has happened.

    Args:
        changes: In order.
        writes: What clients have written: whoever was done with that had waited for the changes before it.
        clocks_apart_us: The database's clock, less that of *writes*.
        seen_after_us: See `CrashDatabase`.
    """
    found: list[Step] = []
    latest = math.inf
    for change in reversed(changes):  # each has happened before the next
        latest = min(latest, _latest(change, writes, clocks_apart_us, seen_after_us))
        found += _step(change, latest)
    return found[::-1]


def _latest(change: dict[str, Any], writes: Writes, clocks_apart_us: int, seen_after_us: int) -> float:
    at_most = change["at"] + OPEN_US
    if change["ordered_at"] is None:
        return float(at_most)
    over = writes.over_by(change["ordered_at"] + EARLY_US - clocks_apart_us) + clocks_apart_us + EARLY_US
    return min(at_most, over + seen_after_us)


def _step(change: dict[str, Any], latest: float) -> Iterator[Step]:
    kind = _kind(change)
    if kind is None:
        return
    state = change["state"]
    status = GONE if state == "removed" else change["note"] if state in COMPLETED else IN_PROGRESS
    yield Step(
        kind,
        status,
        change["at"] - EARLY_US,
        latest,
        busy=state == "running" or (state in COMPLETED and change["callback"] == "pending"),
        # A first attempt that is to be made later is left as it is.
        due=change["due_at"] - EARLY_US if state == "pending" and change["attempt"] > 0 else -math.inf,
    )


def _kind(change: dict[str, Any]) -> str | None:
    old, state = change["old_state"], change["state"]
    if old != state:
        if is_retry(change):
            return "retry"
        return {"removed": "remove", "canceled": "cancel", "succeeded": "complete", "failed": "complete"}.get(
            state, "work"
        )
    if old == "pending" and change["due_at"] != change["old_due_at"]:
        return "hasten"
    return "work" if change["old_callback"] != change["callback"] else None
