"""
The invariants I1 to I9, as far as they can be read off what is committed.

`check` looks at one state of the database, `check_step` at what happened between two of them.
"""

import json
from typing import Any

from action_retrier._lifecycle import COMPLETED, TRANSITIONS, State

from .support.backoffs import backoff_us

_AT_ONCE_US = 1_000_000  # two statements of one transaction each read the clock

_CANNOT_SAY_WHEN = {"WorkerLost", "WorkerStopped", "TimedOut", "ConnectionError"}  # others may, as RetryAfter does

Snapshot = dict[str, list[dict[str, Any]]]


def check(snapshot: Snapshot) -> None:
    """Raise AssertionError unless every row is one that may exist."""
    runs = {row["id"]: row for row in snapshot["runs"]}
    assert len(runs) == len(snapshot["runs"])
    for row in runs.values():
        _check_run(row)
    _check_attempts(snapshot, runs)
    keys = [
        (row["namespace"], row["action"], row["idempotency_key"]) for row in runs.values() if row["idempotency_key"]
    ]
    assert len(keys) == len(set(keys)), "an idempotency key has one run"


def _check_run(row: dict[str, Any]) -> None:
    state = State(row["state"])
    policy = json.loads(row["options"])
    assert (row["completed_at"] is not None) == (state in COMPLETED), "I1: in progress, or completed"
    if state == State.RUNNING:
        assert row["worker"], "I1: running means that a worker owns it"
        assert row["started_at"] is not None
        assert row["attempt"] >= 1, "I2: one attempt is current"
        assert row["started_at"] >= row["due_at"], "I7: no attempt starts before it is due"
    if state == State.PENDING:
        assert row["worker"] is None, "I1: a pending run is nobody's"
        assert row["result"] is None
    assert 0 <= row["failures"] <= policy["max_failures"] + 1, "I8: at most max_failures + 1 executions"
    assert row["failures"] <= row["attempt"], "I8: a failure is an attempt that began"
    assert 0 <= row["losses"] <= row["failures"], "I8: a loss is a failure"
    if state == State.SUCCEEDED:
        json.loads(row["result"])
    else:
        assert row["result"] is None
    if state == State.FAILED:
        assert row["error_type"]
        assert row["error"] is not None
    _check_callback(row, state)


def _check_callback(row: dict[str, Any], state: State) -> None:
    callback = row["callback_state"]
    owes = state in COMPLETED and row["on_complete"] != ""
    assert (callback in {"pending", "done"}) == owes, "I4: a completion with a callback owes it, and no other does"
    assert (row["callback_due_at"] is not None) == (callback == "pending")
    assert row["callback_worker"] is None or callback == "pending", "I4: only a pending callback is being called"
    assert row["callback_losses"] >= 0  # those of the attempts before count as well


def _check_attempts(snapshot: Snapshot, runs: dict[str, dict[str, Any]]) -> None:
    seen = set()
    for attempt in snapshot["attempts"]:
        key = (attempt["run_id"], attempt["number"])
        assert key not in seen, "I2: attempt numbers are never reused"
        seen.add(key)
        assert attempt["run_id"] in runs, "I9: a removed run leaves no history"
        run = runs[attempt["run_id"]]
        assert 1 <= attempt["number"] <= run["attempt"]
        if run["state"] in {"running", "succeeded"}:
            assert attempt["number"] < run["attempt"], "I2: the current attempt has not failed"
        assert attempt["ended_at"] >= attempt["started_at"]
        assert attempt["error_type"]


def check_step(before: Snapshot, after: Snapshot) -> None:
    """Raise AssertionError unless every row went a way that the state machine has."""
    later = {row["id"]: row for row in after["runs"]}
    failed = {(row["run_id"], row["number"]): row for row in after["attempts"]}
    for old in before["runs"]:
        new = later.get(old["id"])
        _check_way(old, new)
        if new is not None:
            _check_times(old, new, failed.get((new["id"], new["attempt"])))
    kept = {(row["run_id"], row["number"]): row for row in after["attempts"]}
    for row in before["attempts"]:
        if row["run_id"] in later:
            assert kept[row["run_id"], row["number"]] == row, "history is not rewritten"


def _check_times(old: dict[str, Any], new: dict[str, Any], failed: dict[str, Any] | None) -> None:
    """I7: a retry waits as long as its policy says; past its deadline no attempt begins, and none is waited for."""
    was, now, deadline = old["state"], new["state"], new["deadline_at"]
    policy = json.loads(new["options"])
    if (was, now) == ("pending", "running"):
        assert deadline is None or new["started_at"] < deadline, "an attempt was claimed past the deadline"
    if (was, now) == ("running", "pending"):
        if new["failures"] == old["failures"]:
            assert new["due_at"] == old["due_at"], "I7: what was given back is due as it was"
            return
        assert failed is not None, "I2: a failure of no current attempt"
        least, most = backoff_us(policy, new["failures"])
        is_by_policy = failed["error_type"] in _CANNOT_SAY_WHEN
        assert not is_by_policy or least <= failed["delay"] <= most, f"I7: {failed['delay']} us, {new['failures']}"
        if failed["delay"]:
            since = new["due_at"] - failed["delay"]
            assert abs(since - failed["ended_at"]) <= _AT_ONCE_US, "I7: it is due when that has passed"
        if (
            failed["error_type"] == "WorkerLost"
        ):  # settled as it is written; others may be written late, after an outage
            assert deadline is None or new["due_at"] < deadline + _AT_ONCE_US, "nobody waits for what may not begin"
    if was in COMPLETED and now == "pending":
        limit_ms = policy["deadline_ms"]
        is_after = deadline is not None and limit_ms is not None and deadline - new["due_at"] >= limit_ms * 1000 - 1
        assert is_after or (deadline, limit_ms) == (None, None), "a retry has a deadline of its own"
    if now == "failed" and was != now and new["error_type"] == "DeadlineExceeded":
        assert deadline is not None, "only what has a deadline can exceed it"
        assert new["completed_at"] >= deadline - _AT_ONCE_US, "it was not over yet"


def _check_way(old: dict[str, Any], new: dict[str, Any] | None) -> None:
    was = State(old["state"])
    if new is None:
        assert was in COMPLETED, "I1, I9: only a completed run is removed"
        return
    now = State(new["state"])
    assert new["attempt"] in {old["attempt"], old["attempt"] + 1}, "I2: attempts are numbered one by one"
    if new["attempt"] > old["attempt"]:
        assert (was, now) == (State.PENDING, State.RUNNING), "I2: only a claim begins an attempt"
    if was != now:
        assert now in {after for (state, _), after in TRANSITIONS.items() if state == was}, f"{was} became {now}"
    if was in COMPLETED and now in COMPLETED:
        same = ("state", "completed_at", "result", "error", "error_type", "failures", "attempt")
        assert [old[name] for name in same] == [new[name] for name in same], "I3: a completion is final"
    if was == State.SUCCEEDED:
        assert now == State.SUCCEEDED, "I3: a success is final"
    if was in COMPLETED and old["callback_state"] == "pending":
        assert now == was, "I4: a pending callback keeps retry off"
    if was in COMPLETED and now in COMPLETED and old["callback_state"] == "done":
        assert new["callback_state"] == "done", "I4: done once, and for all"
    for name in ("namespace", "action", "queue", "on_complete", "priority", "options", "args", "context"):
        assert new[name] == old[name], f"{name} is frozen into the run"
