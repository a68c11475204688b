"""Start runs."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic_core import to_json

from .._codec import same_json
from .._policy import RetryPolicy, to_us
from .._statements import Op, Row, Statement
from ..errors import IdempotencyConflict

_BATCH = 5000  # rows a statement: one that inserts any number would outlast what a call may take


class Start(NamedTuple):
    """
    One run to start, checked and encoded.

    Attributes:
        id: Made by the client, so that a repeated start inserts once.
        at_us: Due at this instant; None means after *delay_us*.
        args: JSON text; *context* likewise, or None.
        aliases: Older names of the action: a key that was used under one of them is used.
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
    aliases: tuple[str, ...] = ()


def may_wait(starts: Sequence[Start]) -> bool:
    """Tell whether starting these may have to wait for a user's transaction, which has taken a key and not ended."""
    return any(start.idempotency_key is not None for start in starts)


def start_runs(namespace: str, starts: Sequence[Start], *, stands_alone: bool = False) -> Op[list[str]]:
    """
    Insert runs, and return their ids in order; a known idempotency key gives its run's id.

    Args:
        stands_alone: Nothing follows in this operation: what one statement can do may be a transaction of its own.

    Raises:
        IdempotencyConflict: A key belongs to a run with other arguments. What this operation
            has inserted by then goes with its transaction, or its savepoint.
    """
    if not may_wait(starts):
        yield from _insert(namespace, starts, is_all=True, stands_alone=stands_alone)
        return [start.id for start in starts]
    renamed = yield from _owners(namespace, [start for start in starts if start.aliases], by_alias=True)
    # Keys in order: two transactions that start the same ones then wait for each other at most once.
    fresh = [start for start in starts if start.id not in renamed]
    wanted = sorted(fresh, key=lambda start: (start.idempotency_key or "", start.action))
    owners = renamed
    while wanted:
        inserted = yield from _insert(namespace, wanted)
        wanted = [start for start in wanted if start.idempotency_key is not None and start.id not in inserted]
        found = yield from _owners(namespace, wanted)
        owners |= found
        # Whose key was taken and has no owner: that one has been cleaned up in between, so the key is free.
        wanted = [start for start in wanted if start.id not in found]
    for start in starts:
        owner = owners.get(start.id)
        if owner is not None and not same_json(owner["args"], start.args):
            assert start.idempotency_key is not None
            raise IdempotencyConflict(action=start.action, idempotency_key=start.idempotency_key, run_id=owner["id"])
    return [owners[start.id]["id"] if start.id in owners else start.id for start in starts]


def _insert(
    namespace: str, starts: Sequence[Start], *, is_all: bool = False, stands_alone: bool = False
) -> Op[set[str]]:
    """Insert those whose ids and keys are free; return their ids. Nothing else follows if that *is_all*."""
    inserted: set[str] = set()
    for at in range(0, len(starts), _BATCH):
        batch = [_encode(start) for start in starts[at : at + _BATCH]]
        is_last = is_all and at + _BATCH >= len(starts)
        # Done again under the same ids it inserts nothing twice.
        alone = stands_alone and is_last and at == 0
        rows = yield Statement("insert_runs", {"namespace": namespace}, batch, is_last=is_last, stands_alone=alone)
        inserted |= {row["id"] for row in rows}
    return inserted


def _owners(namespace: str, starts: Sequence[Start], *, by_alias: bool = False) -> Op[dict[str, Row]]:
    """Return, by the ids of those starts whose idempotency key is taken, the run that has it."""
    keys = [
        (start.id, action, start.idempotency_key)
        for start in starts
        if start.idempotency_key is not None
        for action in (start.aliases if by_alias else (start.action,))
    ]
    if not keys:
        return {}
    asked = to_json([{"action": action, "key": key} for _, action, key in keys]).decode()
    rows = yield Statement("select_keys", {"namespace": namespace, "keys": asked})
    found = {(row["action"], row["key"]): row for row in rows}
    return {run_id: found[action, key] for run_id, action, key in keys if (action, key) in found}


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
