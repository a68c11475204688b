"""Cancel, retry and clean up."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .._lifecycle import COMPLETED, State
from .._statements import Op, Row, Statement
from ..errors import RunInProgress, RunNotFound, RunSucceeded


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs a bulk operation means; None means any. An action may have had several names."""

    actions: Collection[str] | None = None
    queue: str | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """What the bulk statements want to know."""
        return {"actions": None if self.actions is None else json.dumps([*self.actions]), "queue": self.queue}


_ANY = Filter()


def load_status(namespace: str, run_id: str, *, stands_alone: bool = False) -> Op[Row]:
    """
    Return state, result, error_type, error and callback_state of a run; it may be all that an operation does.

    Raises:
        RunNotFound: No run has this id.
    """
    rows = yield Statement("select_status", {"namespace": namespace, "id": run_id}, stands_alone=stands_alone)
    if not rows:
        raise RunNotFound(run_id=run_id)
    return rows[0]


def cancel_run(namespace: str, run_id: str) -> Op[bool]:
    """Cancel a run. False: it had already completed, and is unchanged. Raises `RunNotFound`."""
    canceled = yield from _cancel(namespace, run_id, _ANY)
    if not canceled:
        yield from load_status(namespace, run_id)
    return bool(canceled)


def cancel_runs(namespace: str, which: Filter) -> Op[int]:
    """Cancel every run that has not completed; return how many."""
    return (yield from _cancel(namespace, None, which))


def _cancel(namespace: str, run_id: str | None, which: Filter) -> Op[int]:
    rows = yield Statement("cancel_runs", which.parameters | {"namespace": namespace, "id": run_id})
    executing = [
        {
            "id": row["id"],
            "number": row["attempt"],
            "worker": row["worker"],
            "error_type": "Canceled",
            "error": "the run was canceled while the attempt was running",
            "traceback": None,
            "delay": None,
        }
        for row in rows
        if row["worker"] is not None  # a pending run has none
    ]
    if executing:
        yield Statement("insert_attempts", {"attempts": json.dumps(executing)})
    return len(rows)


def retry_run(namespace: str, run_id: str) -> Op[None]:
    """
    Start a failed or canceled run afresh; make one that backs off due now.

    Raises:
        RunNotFound, RunSucceeded
        RunInProgress: It executes, or its callback is pending.
    """
    rows = yield Statement("retry_runs", _ANY.parameters | {"namespace": namespace, "id": run_id, "backing_off": 1})
    if rows:
        return
    row = yield from load_status(namespace, run_id)
    _refuse_pending_callback(run_id, row)
    match row["state"]:
        case State.SUCCEEDED:
            raise RunSucceeded(run_id=run_id)
        case State.RUNNING:
            raise RunInProgress(run_id=run_id, reason="is executing", remedy="wait for its end, or cancel it first")
        # A pending run that is due, or was started for later, is on its way: nothing to do.


def retry_runs(namespace: str, which: Filter) -> Op[int]:
    """Start afresh every failed and canceled run whose callback is not pending; return how many."""
    rows = yield Statement("retry_runs", which.parameters | {"namespace": namespace, "id": None, "backing_off": 0})
    return len(rows)


def clean_up_run(namespace: str, run_id: str, *, discard_callback: bool) -> Op[bool]:
    """
    Remove a completed run and its history; tell whether a pending callback was discarded.

    Raises:
        RunNotFound
        RunInProgress: It has not completed, or its callback is pending and not to be discarded.
    """
    deleted = yield from _delete(namespace, [run_id], discard_callback=discard_callback)
    if deleted:
        return bool(deleted[0]["callback_state"] == "pending")
    row = yield from load_status(namespace, run_id)
    _refuse_pending_callback(run_id, row)
    raise RunInProgress(
        run_id=run_id, reason=f"has not completed (it is {row['state']})", remedy="wait for it, or cancel it first"
    )


def prune_runs(namespace: str, age_us: int, count: int) -> Op[int]:
    """Remove at most *count* runs that completed more than *age_us* ago; return how many."""
    rows = yield Statement("select_old", {"namespace": namespace, "age": age_us, "count": count})
    if not rows:
        return 0
    return len((yield from _delete(namespace, [row["id"] for row in rows], discard_callback=False)))


def _delete(namespace: str, run_ids: Sequence[str], *, discard_callback: bool) -> Op[list[dict[str, object]]]:
    rows = yield Statement(
        "delete_runs",
        {"namespace": namespace, "ids": json.dumps(run_ids), "discard_callback": int(discard_callback)},
    )
    if rows:
        yield Statement("delete_attempts", {"ids": json.dumps([row["id"] for row in rows])})
    return rows


def _refuse_pending_callback(run_id: str, row: Row) -> None:
    if row["state"] in COMPLETED and row["callback_state"] == "pending":
        raise RunInProgress(
            run_id=run_id,
            reason=f"has completed, but its callback {row['on_complete']!r} is still pending",
            remedy="wait until the callback has committed, or give it up with cleanup(discard_callback=True)",
        )
