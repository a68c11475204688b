"""Start runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .._codec import same_json
from .._policy import RetryPolicy, to_us
from .._statements import Op, Statement
from ..errors import IdempotencyConflict


@dataclass(frozen=True, slots=True)
class Start:
    """
    One run to start, checked and encoded.

    Attributes:
        id: Made by the client, so that a repeated start inserts once.
        at_us: Due at this instant; None means after *delay_us*.
        args: JSON text; *context* likewise, or None.
    """

    id: str
    action: str
    args: str
    policy: RetryPolicy
    on_complete: str = ""
    context: str | None = None
    at_us: int | None = None
    delay_us: int = 0
    idempotency_key: str | None = None


def may_wait(starts: Sequence[Start]) -> bool:
    """Tell whether starting these may have to wait for a user's transaction, which has taken a key and not ended."""
    return any(start.idempotency_key is not None for start in starts)


def start_runs(namespace: str, starts: Sequence[Start]) -> Op[list[str]]:
    """
    Insert runs, and return their ids in order; a known idempotency key gives its run's id.

    Raises:
        IdempotencyConflict: A key belongs to a run with other arguments. What this operation
            has inserted by then goes with its transaction, or its savepoint.
    """
    # Keys in order: two transactions that start the same ones then wait for each other at most once.
    ordered = sorted(starts, key=lambda start: (start.idempotency_key or "", start.action))
    encoded = json.dumps([_encode(start) for start in ordered], separators=(",", ":"), ensure_ascii=False)
    rows = yield Statement("insert_runs", {"namespace": namespace, "runs": encoded})
    inserted = {row["id"] for row in rows}
    owners = {}
    known = [start for start in starts if start.idempotency_key is not None and start.id not in inserted]
    if known:
        keys = [{"action": start.action, "key": start.idempotency_key} for start in known]
        rows = yield Statement("select_keys", {"namespace": namespace, "keys": json.dumps(keys)})
        owners = {(row["action"], row["key"]): row for row in rows}
    for start in known:
        owner = owners[start.action, start.idempotency_key]
        if not same_json(owner["args"], start.args):
            assert start.idempotency_key is not None
            raise IdempotencyConflict(action=start.action, idempotency_key=start.idempotency_key, run_id=owner["id"])
    known_ids = {start.id for start in known}
    return [
        owners[start.action, start.idempotency_key]["id"] if start.id in known_ids else start.id for start in starts
    ]


def _encode(start: Start) -> dict[str, object]:
    deadline_ms = start.policy.deadline_ms
    return {
        "id": start.id,
        "action": start.action,
        "queue": start.policy.queue,
        "on_complete": start.on_complete,
        "priority": start.policy.priority,
        "at": start.at_us,
        "delay": start.delay_us,
        "deadline": None if deadline_ms is None else to_us(deadline_ms),
        "key": start.idempotency_key,
        "options": start.policy.to_json(),
        "context": start.context,
        "args": start.args,
    }
