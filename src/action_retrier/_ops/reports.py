"""Write what attempts and callbacks led to, under their fences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .._lifecycle import Finish, Move, Reschedule
from .._statements import Op, Rows, Statement


@dataclass(frozen=True, slots=True)
class CallbackMark:
    """
    What the completing transaction says of the callback.

    Attributes:
        state: ``none`` without one, ``done`` if it runs in this transaction, else ``pending``.
        tries: Tries made so far.
        delay_us: A pending one is due after this.
        error: What the last try raised, and its *traceback*.
        losses: Workers in a row that it may have cost: above 0 it is called apart from other suspects.
    """

    state: str = "none"
    tries: int = 0
    delay_us: int = 0
    error: str | None = None
    losses: int = 0
    traceback: str | None = None


NO_CALLBACK = CallbackMark()


class Settled(NamedTuple):
    """One attempt's end: *attempt* is the fencing token."""

    run_id: str
    attempt: int
    worker: str
    move: Move
    callback: CallbackMark = NO_CALLBACK
    progress: tuple[float, str] | None = None


class Applied(NamedTuple):
    """
    What became of moves, by run id and attempt.

    What is in neither is not the run's current attempt any more, or that was canceled or removed: nothing of its
    move was written.

    Attributes:
        owned: The attempt still owned it, and its move is written.
        busy: Somebody's open transaction holds the row. Nothing is written: whose it is shows when that has ended.
    """

    owned: set[tuple[str, int]]
    busy: set[tuple[str, int]]


def apply_moves(settled: Sequence[Settled]) -> Op[Applied]:
    """Write moves, each if its attempt still owns the run."""
    # In the order of ids, like everything that locks rows, so that no two wait for each other.
    ordered = sorted(settled, key=lambda one: one.run_id)
    finishes = [_finish(one, one.move) for one in ordered if isinstance(one.move, Finish)]
    reschedules = [_reschedule(one, one.move) for one in ordered if isinstance(one.move, Reschedule)]
    rows: Rows = []
    if finishes:
        # Mostly all have succeeded, and nothing else is written.
        is_all = len(finishes) == len(ordered) and all(one.move.failure is None for one in ordered)
        rows += yield Statement("finish_runs", {"moves": _dumps(finishes)}, stands_alone=is_all)
    if reschedules:
        rows += yield Statement("reschedule_runs", {"moves": _dumps(reschedules)})
    # By attempt as well: a batch may hold the report of an attempt beside that of its heir.
    owned = {(row["id"], row["attempt"]) for row in rows if not row["is_busy"]}
    history = [
        {
            "id": one.run_id,
            "number": one.attempt,
            "worker": one.worker,
            "error_type": one.move.failure.error_type,
            "error": one.move.failure.error,
            "traceback": one.move.failure.traceback,
            "delay": one.move.delay_us if isinstance(one.move, Reschedule) else None,
        }
        for one in ordered
        if one.move.failure is not None and (one.run_id, one.attempt) in owned
    ]
    if history:
        yield Statement("insert_attempts", {"attempts": _dumps(history)})
    return Applied(owned, {(row["id"], row["attempt"]) for row in rows if row["is_busy"]})


def _finish(one: Settled, move: Finish) -> dict[str, object]:
    row: dict[str, object] = {
        "id": one.run_id,
        "attempt": one.attempt,
        "state": move.state,
        "failures": move.failures,
        "result": move.result,
        "callback": one.callback.state,
    }
    # Most runs succeed without a callback: what they do not have is not sent.
    if move.failure is not None:
        row |= {"error_type": move.failure.error_type, "error": move.failure.error}
    if one.callback.state != "none":
        row |= {
            "callback_tries": one.callback.tries,
            "callback_delay": one.callback.delay_us,
            "callback_error": one.callback.error,
            "callback_traceback": one.callback.traceback,
            "callback_losses": one.callback.losses,
        }
    return row | _progress(one)


def _reschedule(one: Settled, move: Reschedule) -> dict[str, object]:
    row: dict[str, object] = {
        "id": one.run_id,
        "attempt": one.attempt,
        "delay": move.delay_us,
        "failures": move.failures,
        "losses": move.losses,
    }
    if move.failure is not None:
        row |= {"error_type": move.failure.error_type, "error": move.failure.error}
    return row | _progress(one)


def _progress(one: Settled) -> dict[str, object]:
    if one.progress is None:
        return {}
    fraction, message = one.progress
    return {"progress": fraction, "progress_message": message}


def store_progress(reports: Sequence[tuple[str, int, tuple[float, str]]]) -> Op[None]:
    """Store how far attempts say they are: (run id, attempt, (fraction, message))."""
    encoded = [
        {"id": run_id, "attempt": attempt, "progress": fraction, "progress_message": message}
        for run_id, attempt, (fraction, message) in sorted(reports)
    ]
    yield Statement("update_progress", {"reports": _dumps(encoded)})


def lost_attempts(attempts: Sequence[tuple[str, int]]) -> Op[list[tuple[str, int, str | None]]]:
    """Of (run id, attempt), return those that do not own their run any more, with its state."""
    encoded = [{"id": run_id, "attempt": attempt} for run_id, attempt in attempts]
    rows = yield Statement("select_lost", {"attempts": _dumps(encoded)}, stands_alone=True)
    return [(row["id"], row["attempt"], row["state"]) for row in rows]


def expire_runs(namespace: str, count: int) -> Op[int]:
    """Fail at most *count* pending runs whose deadline has passed; return how many."""
    return len((yield Statement("expire_runs", {"namespace": namespace, "count": count})))


def finish_callback(run_id: str, worker: str, tries: int) -> Op[bool]:
    """Mark a callback as done. False: another try owns it, or it was discarded."""
    return bool((yield Statement("finish_callback", {"id": run_id, "worker": worker, "tries": tries})))


def postpone_callback(
    run_id: str, worker: str, tries: int, delay_us: int, error: str, *, traceback: str | None = None
) -> Op[bool]:
    """Give a callback that raised back, due after *delay_us*. False: it was not owned any more."""
    fence = {"id": run_id, "worker": worker, "tries": tries}
    parameters = fence | {"delay": delay_us, "error": error, "traceback": traceback}
    return bool((yield Statement("postpone_callback", parameters)))


def return_callbacks(run_ids: Sequence[str], worker: str) -> Op[None]:
    """Give callbacks back that were claimed and not called: the tries are not counted."""
    for run_id in sorted(run_ids):
        yield Statement("release_callback", {"id": run_id, "worker": worker, "delay": 0, "lost": 0, "error": None})


def _dumps(rows: Sequence[object]) -> str:
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
