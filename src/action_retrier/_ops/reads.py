"""Read runs, and say what they wait for."""

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from .._codec import loads
from .._statements import Op, Row, Rows, Statement
from ..errors import RunNotFound
from ..results import (
    Attempt,
    Callback,
    Canceled,
    Completed,
    Failed,
    InProgress,
    Page,
    Progress,
    Run,
    RunResult,
    RunStatus,
    Success,
)
from .control import load_status

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_status(namespace: str, run_id: str) -> Op[RunStatus]:
    """Return the status of a run. Raises `RunNotFound`."""
    row = yield from load_status(namespace, run_id, stands_alone=True)
    result = result_of(row)
    return InProgress() if result is None else Completed(result)


def read_run(namespace: str, run_id: str) -> Op[tuple[Row, Rows, Rows]]:
    """Return the row of a run, its attempts and the workers there are. Raises `RunNotFound`."""
    rows = yield Statement("select_run", {"namespace": namespace, "id": run_id})
    if not rows:
        raise RunNotFound(run_id=run_id)
    attempts = yield Statement("select_attempts", {"ids": json.dumps([run_id])})
    workers = yield Statement("select_workers", {"namespace": namespace})
    return rows[0], attempts, workers


def read_runs(
    namespace: str,
    *,
    state: str | None,
    actions: Collection[str] | None,
    queue: str | None,
    callback: str | None,
    before: str | None,
    count: int,
) -> Op[tuple[Rows, Rows, Rows]]:
    """Return rows of runs, newest first, their attempts, and the workers there are."""
    rows = yield Statement(
        "select_runs",
        {
            "namespace": namespace,
            "state": state,
            "actions": None if actions is None else json.dumps([*actions]),
            "queue": queue,
            "callback": callback,
            "before": before,
            "count": count,
        },
    )
    attempts = yield Statement("select_attempts", {"ids": json.dumps([row["id"] for row in rows])})
    workers = yield Statement("select_workers", {"namespace": namespace})
    return rows, attempts, workers


def page_of(rows: Rows, attempts: Rows, workers: Rows, count: int) -> Page:
    """Build a page from *count* + 1 rows asked for: the last one only tells that there are more."""
    history: dict[str, Rows] = {}
    for attempt in attempts:
        history.setdefault(attempt["run_id"], []).append(attempt)
    runs = [run_of(row, history.get(row["id"], []), workers) for row in rows[:count]]
    return Page(runs, runs[-1].id if len(rows) > count else None)


def run_of(row: Row, attempts: Sequence[Row], workers: Sequence[Row]) -> Run:
    """Build what callers see from a run's row, its failed attempts and the live workers."""
    result = result_of(row)
    on_complete = row["on_complete"]
    callback = None
    if on_complete:
        callback = Callback(
            on_complete, row["callback_state"], row["callback_tries"], row["callback_error"], row["callback_traceback"]
        )
    progress = None
    if row["progress"] is not None:
        progress = Progress(row["progress"], row["progress_message"] or "")
    started_at = row["first_started_at"]
    return Run(
        id=row["id"],
        action=row["action"],
        state=row["state"],
        queue=row["queue"],
        priority=row["priority"],
        args=loads(row["args"]),
        options=loads(row["options"]),
        created_at=instant(row["created_at"]),
        due_at=instant(row["due_at"]),
        started_at=None if started_at is None else instant(started_at),
        completed_at=None if row["completed_at"] is None else instant(row["completed_at"]),
        failures=row["failures"],
        attempts=tuple(_attempts(row, attempts)),
        progress=progress,
        result=result,
        context=loads(row["context"]),
        callback=callback,
        blocked_by=_blocked_by(row, workers),
        idempotency_key=row["idempotency_key"],
    )


def result_of(row: Row) -> RunResult | None:
    """Build the result from a run's row; None while it is in progress."""
    match row["state"]:
        case "succeeded":
            return Success(loads(row["result"]))
        case "failed":
            return Failed(row["error"], row["error_type"])
        case "canceled":
            return Canceled()
    return None


def _attempts(row: Row, attempts: Sequence[Row]) -> list[Attempt]:
    told = [
        Attempt(
            number=one["number"],
            started_at=instant(one["started_at"]),
            ended_at=instant(one["ended_at"]),
            worker=one["worker"],
            error_type=one["error_type"],
            error=one["error"],
            traceback=one["traceback"],
            delay_ms=None if one["delay"] is None else one["delay"] / 1000,
        )
        for one in attempts
    ]
    if row["state"] in {"running", "succeeded"} and row["started_at"] is not None:
        # These have no row of their own: the run's row tells of them.
        ended_at = None if row["completed_at"] is None else instant(row["completed_at"])
        told.append(Attempt(row["attempt"], instant(row["started_at"]), ended_at, row["worker"]))
    return told


def _blocked_by(row: Row, workers: Sequence[Row]) -> str | None:
    if row["callback_state"] == "pending":
        waits_for: list[tuple[str, str]] = [("mutations", row["on_complete"])]
    elif row["state"] == "pending" and row["is_due"]:
        waits_for = [("actions", row["action"])]
        if row["on_complete"]:
            waits_for.append(("mutations", row["on_complete"]))
    else:
        return None
    for kind, name in waits_for:
        if not any(name in _names(worker, kind) for worker in workers):
            return str(name)
    return None


def _names(worker: Row, kind: str) -> Collection[Any]:
    names: Collection[Any] = loads(worker[kind])
    return names


def instant(us: int) -> datetime:
    """Return microseconds since the epoch as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)
