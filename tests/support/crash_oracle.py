"""
The oracle of the crash tests: whether what the processes left behind is what was promised.

It believes three witnesses: the database, the table ``effects`` that callbacks write, and the log that functions
append to. A trigger records every change of a run in the transaction that makes it, so that no state goes unseen.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash_database import CrashDatabase
from crash_witness import Line, read_log

COMPLETED = {"succeeded", "failed", "canceled"}
OUTCOMES = {"succeeded": "success", "failed": "failed", "canceled": "canceled"}
LEGAL = {
    ("pending", "running"),
    ("pending", "failed"),
    ("pending", "canceled"),
    ("running", "pending"),
    *(("running", state) for state in COMPLETED),
}
"""Changes of state; none of these runs is started afresh by `retry`."""


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to one run."""

    row: dict[str, Any]
    attempts: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    effects: list[str]
    lines: list[Line]

    @property
    def executions(self) -> int:
        """How often its action has begun."""
        return sum(line.event == "begin" for line in self.lines)

    @property
    def losses(self) -> int:
        """How many of its attempts died with their worker."""
        return sum(attempt["error_type"] == "WorkerLost" for attempt in self.attempts)


def is_complete(database: CrashDatabase, run_ids: Iterable[str]) -> bool:
    """Tell whether runs have ended and called back."""
    with database.looking() as look:
        count = look.value(
            f"SELECT count(*) FROM {database.given} AS given"  # noqa: S608
            " LEFT JOIN action_retrier_runs AS r ON r.id = given.value"
            " WHERE r.completed_at IS NULL OR r.callback_state = 'pending'",
            json.dumps(list(run_ids)),
        )
    return bool(count == 0)


def is_quiet(database: CrashDatabase) -> bool:
    """Tell whether every run there is has ended and called back; cheap, however many there are."""
    with database.looking() as look:
        found = [
            look.rows(f"SELECT 1 AS one FROM action_retrier_runs WHERE {condition} LIMIT 1")  # noqa: S608
            for condition in (
                "state = 'pending' AND losses = 0",
                "state = 'pending' AND losses > 0",
                "state = 'running'",
                "callback_state = 'pending'",
            )
        ]
    return not any(found)


def tell_stories(database: CrashDatabase, folder: Path) -> dict[str, Story]:
    """Read what happened to every run, from one state of the database."""
    known = len(read_log(folder))
    with database.looking() as look:
        rows = look.rows("SELECT * FROM action_retrier_runs ORDER BY id")
        attempts = _by_run(look.rows("SELECT * FROM action_retrier_attempts ORDER BY number"))
        changes = _by_run(look.rows("SELECT * FROM crash_history ORDER BY number"))
        effects = _by_run(look.rows("SELECT * FROM effects"))
    lines: dict[str, list[Line]] = defaultdict(list)
    for number, line in enumerate(read_log(folder)):
        # Processes go on: what began after the database was read may have been claimed after it too.
        if number < known or line.event != "begin":
            lines[line.run_id].append(line)
    return {
        row["id"]: Story(
            row,
            attempts[row["id"]],
            changes[row["id"]],
            [effect["outcome"] for effect in effects[row["id"]]],
            lines[row["id"]],
        )
        for row in rows
    }


def _by_run(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["run_id"]].append(row)
    return grouped


def check(
    database: CrashDatabase, folder: Path, acknowledged: Iterable[str], *, complete: bool = True
) -> dict[str, Story]:
    """
    Assert every invariant, and return the runs' stories.

    Args:
        database: Where the runs are.
        folder: Where the log is.
        acknowledged: Ids that were returned to whoever started the runs.
        complete: All runs must have ended. When not, what holds at any moment is checked.
    """
    stories = tell_stories(database, folder)
    found = [f"{run_id}: lost" for run_id in acknowledged if run_id not in stories]
    for run_id, story in stories.items():
        problems = [*_states(story), *_attempts(story), *_executions(story), *_callback(story)]
        if complete:
            problems += _end(story)
        found += [f"{run_id}: {problem}" for problem in problems]
    found += database.damage()
    if complete:
        with database.looking() as look:
            found += [f"worker {row['id']} is left" for row in look.rows("SELECT id FROM action_retrier_workers")]
    assert not found, "\n".join(found)
    return stories


def _states(story: Story) -> Iterator[str]:
    """I2, I3: every change is legal, a completed run stays as it is, attempt numbers are never reused."""
    state, attempt = "pending", 0
    for change in story.changes:
        if (change["old_state"], change["old_attempt"]) != (state, attempt):
            yield f"the history has a gap before {change}"
        state, attempt = change["state"], change["attempt"]
        if change["old_state"] != state and (change["old_state"], state) not in LEGAL:
            yield f"went from {change['old_state']} to {state}"
        claimed = (change["old_state"], state) == ("pending", "running")
        if attempt != change["old_attempt"] + claimed:
            yield f"attempt went from {change['old_attempt']} to {attempt} as it became {state}"
    if (state, attempt) != (story.row["state"], story.row["attempt"]):
        yield "the history does not lead to what is there"


def _attempts(story: Story) -> Iterator[str]:
    """I8: every failure is recorded once and counted once, and there are not more than the policy allows."""
    row = story.row
    max_failures = json.loads(row["options"])["max_failures"]
    if row["failures"] > max_failures + 1:
        yield f"{row['failures']} failures, and max_failures is {max_failures}"
    recorded = sum(one["error_type"] != "Canceled" for one in story.attempts)
    if recorded != row["failures"]:
        yield f"{row['failures']} failures, and {recorded} recorded attempts"
    numbers = [one["number"] for one in story.attempts]
    if any(number > row["attempt"] for number in numbers):
        yield f"attempts {numbers} are recorded, and the last one was {row['attempt']}"
    if row["state"] == "failed" and row["failures"] <= max_failures and row["deadline_at"] is None:
        yield f"failed for good after {row['failures']} failures of {max_failures + 1}"


def _executions(story: Story) -> Iterator[str]:
    """I8: an attempt begins once at most, in order, and there are at most max_failures + 1 of them."""
    begun = [line.attempt for line in story.lines if line.event == "begin"]
    if begun != sorted(set(begun)):
        yield f"attempts began as {begun}"
    if len(begun) > json.loads(story.row["options"])["max_failures"] + 1:
        yield f"{len(begun)} executions"
    claimed = {change["attempt"] for change in story.changes if change["state"] == "running"}
    if not claimed.issuperset(begun):
        yield f"attempts {begun} began, and {sorted(claimed)} were claimed"
    failed = {one["number"] for one in story.attempts}
    last = story.row["attempt"]
    if story.row["state"] in COMPLETED and not failed.issuperset(number for number in begun if number != last):
        yield f"attempts {begun} began, and those that failed are {sorted(failed)}"
    if story.row["state"] == "succeeded":
        returned = {line.attempt for line in story.lines if line.event == "end"}
        if last not in returned or last in failed:
            yield f"succeeded in attempt {last}, and those that returned are {sorted(returned)}"


def _callback(story: Story) -> Iterator[str]:
    """I4: its writes are there exactly once if it is done, and not at all before."""
    row = story.row
    expected = [OUTCOMES[row["state"]]] if row["callback_state"] == "done" else []
    if story.effects != expected:
        yield f"callback {row['callback_state']}, run {row['state']}, effects {story.effects}"
    owed = bool(row["on_complete"]) and row["state"] in COMPLETED
    if owed != (row["callback_state"] != "none"):
        yield f"callback {row['callback_state']}, run {row['state']}"
    steps = [change["callback"] for change in story.changes if change["callback"] != change["old_callback"]]
    if steps not in ([], ["pending"], ["done"], ["pending", "done"]):
        yield f"the callback became {steps}"


def _end(story: Story) -> Iterator[str]:
    """I1: the run has ended, nobody owns it, and nothing is owed."""
    row = story.row
    if row["state"] not in COMPLETED or row["callback_state"] == "pending" or row["callback_worker"] is not None:
        yield f"is {row['state']}, callback {row['callback_state']} (worker {row['callback_worker']})"
