"""The rules for instants over the story of one run: when it is due, how long it backs off, until when it may go on."""

import json
from collections.abc import Iterator
from typing import Any

from backoffs import FOREVER_MS, backoff_us
from crash_rules import CLOCK_US, Broken, Story, is_retry

STALE_US = 60_000_000
"""How old the instant that a statement goes by may be when its rows are written: whoever is stopped there goes on later."""
BEGINS_WITHIN_US = 30_000_000
"""How long after its claim an attempt may begin: whoever is stopped before he looks at his lease has it, and he may be after it."""


def broken_times(story: Story) -> Iterator[Broken]:
    """Say what is wrong."""
    yield from _due_times(story)
    if story.kept:
        options = json.loads(story.kept["options"])
        yield from _backoffs(story, options)
        yield from _deadlines(story, options)


def _due_times(story: Story) -> Iterator[Broken]:
    """I7: no attempt is claimed before it is due, by the database's clock; a retry makes a run due at once."""
    for change in story.changes:
        move, at = (change["old_state"], change["state"]), change["at"]
        is_moved = change["due_at"] != change["old_due_at"]
        if move == ("pending", "running"):
            early = change["old_due_at"] - min(at, change["started_at"] + CLOCK_US)
            if early > CLOCK_US:
                yield Broken("early", f"I7: attempt {change['attempt']} began {early} us before it was due")
            if not _is_now(change["started_at"], at):
                yield Broken(
                    "early", f"I7: attempt {change['attempt']} was claimed at {at}, as of {change['started_at']}"
                )
        elif is_retry(change) or (move == ("pending", "pending") and is_moved):
            if not _is_now(change["due_at"], at) or (not is_retry(change) and change["due_at"] > change["old_due_at"]):
                yield Broken("early", f"I7: a retry at {at} made it due at {change['due_at']}")
        elif is_moved and move != ("running", "pending"):
            yield Broken("illegal", f"I7: its due time was changed when it went from {move[0]} to {move[1]}")


def _is_now(instant: int, at: int) -> bool:
    """Tell whether an instant can be what a statement took for now whose rows were written at another."""
    return at - STALE_US <= instant <= at + CLOCK_US


def _backoffs(story: Story, options: dict[str, Any]) -> Iterator[Broken]:
    """I7: whoever is given back unbegun keeps its due time; after a failure it waits as long as the policy says."""
    delays = {one["number"]: one["delay"] for one in story.attempts}
    for change in story.changes:
        if (change["old_state"], change["state"]) != ("running", "pending"):
            continue
        number, failures = change["attempt"], change["failures"]
        if failures == change["old_failures"]:
            if change["due_at"] != change["old_due_at"]:
                yield Broken("early", f"I7: attempt {number} did not fail, and its due time was changed")
            continue
        delay = delays.get(number)
        least, most = backoff_us(options, failures)
        if delay is None or not least <= delay <= most:
            yield Broken("early", f"I7: waits {delay} us after failure {failures}, not {least} to {most}")
        elif delay == 0:  # which keeps what has been
            if change["due_at"] != change["old_due_at"]:
                yield Broken("early", f"I7: waits for nothing after attempt {number}, and its due time was changed")
        elif not _is_now(change["due_at"] - delay, change["at"]):
            yield Broken("early", f"I7: after failure {failures} at {change['at']}, due at {change['due_at']}")


def _deadlines(story: Story, options: dict[str, Any]) -> Iterator[Broken]:
    """A life's deadline counts from its first due time; until then it may go on, and not longer."""
    limit_ms = options["deadline_ms"]
    for life in story.lives:
        first = life.changes[0]
        due_at = first["due_at"] if is_retry(first) else first["old_due_at"]
        deadline = None if limit_ms is None else due_at + int(min(limit_ms, FOREVER_MS) * 1000)
        for change in life.changes:
            yield from _deadline(change, deadline, options)
        if deadline is None:
            continue
        for line in story.lines:
            late = line.at_us + story.clocks_apart_us - deadline
            if line.event == "begin" and life.has(line.attempt) and late > BEGINS_WITHIN_US:
                yield Broken("executions", f"attempt {line.attempt} began {late} us after the deadline")


def _deadline(change: dict[str, Any], deadline: int | None, options: dict[str, Any]) -> Iterator[Broken]:
    old, state, at = change["old_state"], change["state"], change["at"]
    found = change["deadline_at"]
    if (found is None) != (deadline is None) or (deadline is not None and abs(found - deadline) > 1):
        yield Broken("illegal", f"its deadline is {found}, not {deadline}, when it becomes {state}")
    if deadline is not None and (old, state) == ("pending", "running") and change["started_at"] >= deadline:
        yield Broken(
            "executions", f"attempt {change['attempt']} was claimed {change['started_at'] - deadline} us too late"
        )
    if state != "failed" or old == state:
        return
    is_over = deadline is not None and at + CLOCK_US >= deadline
    if (old == "pending" or change["note"].startswith("failed:DeadlineExceeded")) and not is_over:
        yield Broken("illegal", f"was failed by its deadline at {at}, and that was {deadline}")
    if old == "running" and change["failures"] <= options["max_failures"]:
        # It is given up before that if the next attempt could not begin in time.
        most = backoff_us(options, change["failures"])[1]
        if deadline is None or at + most + CLOCK_US < deadline:
            text = f"failed for good after {change['failures']} failures of {options['max_failures'] + 1}"
            yield Broken("executions", f"I8: {text}, at {at}; its deadline was {deadline}")
