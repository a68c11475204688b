"""
The invariants I1 to I9 over the story of one run: each rule says what of it is broken.

What is known of a run are the row, the attempts, every change that a trigger saw, what its callbacks wrote, and what
its functions logged. A life of a run goes from its start, or a `retry`, to its completion.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from crash_witness import Line

COMPLETED = {"succeeded", "failed", "canceled"}
OUTCOMES = {"succeeded": "success", "failed": "failed", "canceled": "canceled"}
LEGAL = {
    ("pending", "running"),
    ("pending", "failed"),
    ("pending", "canceled"),
    ("running", "pending"),
    *(("running", state) for state in COMPLETED),
    ("failed", "pending"),  # only by `retry`
    ("canceled", "pending"),
    *((state, "removed") for state in COMPLETED),
}
"""Changes of state."""
CLOCK_US = 2_000
"""What an instant that a trigger notes may be wrong by: on SQLite it has no more than milliseconds."""


class Broken(NamedTuple):
    """What is wrong with a run, and under which heading it counts."""

    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to one run; one that has been removed has no row, and no attempts."""

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

    @property
    def is_removed(self) -> bool:
        """Whether it has been removed."""
        return not self.row

    @property
    def lives(self) -> list["Life"]:
        """What lies between its start and the first completion, and so on."""
        lives: list[Life] = []
        for change in self.changes:
            if not lives or is_retry(change):
                lives.append(Life([], change["old_attempt"]))
            lives[-1].changes.append(change)
        return lives


@dataclass(frozen=True, slots=True)
class Life:
    """The changes of one life, and the number of the last attempt before it."""

    changes: list[dict[str, Any]]
    after: int

    @property
    def end(self) -> dict[str, Any] | None:
        """The change that completed it."""
        return next(
            (one for one in self.changes if one["old_state"] != one["state"] and one["state"] in COMPLETED), None
        )

    @property
    def last(self) -> dict[str, Any]:
        """Its last change, but for the removal."""
        return [one for one in self.changes if one["state"] != "removed"][-1]

    @property
    def callback(self) -> list[str]:
        """What the callback became, one after the other."""
        return [one["callback"] for one in self.changes if one["callback"] not in {one["old_callback"], "none"}]

    def has(self, attempt: int) -> bool:
        """Tell whether an attempt was one of it."""
        return self.after < attempt <= self.changes[-1]["attempt"]


def is_retry(change: dict[str, Any]) -> bool:
    """Tell whether a change started a completed run afresh."""
    return change["old_state"] in COMPLETED and change["state"] == "pending"


def broken_rules(story: Story, *, complete: bool) -> Iterator[Broken]:
    """Say what is wrong; *complete*: it must have ended."""
    lives = story.lives
    yield from _states(story)
    yield from _results(story, lives)
    yield from _callbacks(story, lives)
    yield from _due_times(story)
    if story.is_removed:
        return
    yield from _attempts(story, lives)
    yield from _executions(story, lives)
    if complete:
        yield from _end(story)


def _states(story: Story) -> Iterator[Broken]:
    """I2, I3, I5, I9: every change is legal, a completed run stays as it is, attempt numbers are never reused."""
    state, attempt = "pending", 0
    for change in story.changes:
        old = change["old_state"]
        if (old, change["old_attempt"]) != (state, attempt):
            yield Broken("illegal", f"I2: the history has a gap before {change}")
        state, attempt = change["state"], change["attempt"]
        if old != state and (old, state) not in LEGAL:
            rules = {"canceled": "canceled", "removed": "removed", "succeeded": "final", "failed": "final"}
            rule = rules.get(old if state != "removed" else state, "illegal")
            yield Broken(rule, f"I3, I5: went from {old} to {state}")
        if state == "removed" and change["old_callback"] == "pending":
            yield Broken("removed", "I9: was removed, and its callback was pending")
        if attempt != change["old_attempt"] + ((old, state) == ("pending", "running")):
            yield Broken("zombie", f"I2: attempt went from {change['old_attempt']} to {attempt} as it became {state}")
    if story.is_removed:
        if state != "removed":
            yield Broken("lost", f"I1: is not there, and was {state}")
    elif (state, attempt) != (story.row["state"], story.row["attempt"]):
        yield Broken("illegal", "I2: the history does not lead to what is there")


def _results(story: Story, lives: list[Life]) -> Iterator[Broken]:
    """I2: what a run results in comes from its current attempt, whose number every action returns."""
    returned = {line.attempt for line in story.lines if line.event == "end"}
    for life in lives:
        end = life.end
        if end is not None and end["state"] == "succeeded":
            if end["note"] != f"success:{end['attempt']}":
                yield Broken("zombie", f"I2: ended in attempt {end['attempt']} with {end['note']}")
            if end["attempt"] not in returned:
                yield Broken("zombie", f"I2: succeeded in attempt {end['attempt']}, and returned in {sorted(returned)}")


def _due_times(story: Story) -> Iterator[Broken]:
    """I7: no attempt is claimed before it is due, by the database's clock."""
    for change in story.changes:
        if (change["old_state"], change["state"]) == ("pending", "running"):
            early = change["old_due_at"] - change["at"]
            if early > CLOCK_US:
                yield Broken("early", f"I7: attempt {change['attempt']} began {early} us before it was due")


def _attempts(story: Story, lives: list[Life]) -> Iterator[Broken]:
    """I8: every failure is recorded once and counted once, and there are not more than the policy allows."""
    row = story.row
    max_failures = json.loads(row["options"])["max_failures"]
    numbers = [one["number"] for one in story.attempts]
    if any(number > row["attempt"] for number in numbers):
        yield Broken("executions", f"attempts {numbers} are recorded, and the last one was {row['attempt']}")
    failed = [one["number"] for one in story.attempts if one["error_type"] != "Canceled"]
    if not lives and failed:
        yield Broken("executions", f"attempts {failed} are recorded, and nothing has happened")
    for life in lives:
        failures, recorded = life.last["failures"], sum(life.has(number) for number in failed)
        if failures > max_failures + 1:
            yield Broken("executions", f"I8: {failures} failures, and max_failures is {max_failures}")
        if recorded != failures:
            yield Broken("executions", f"I8: {failures} failures, and {recorded} recorded attempts")
        ended = life.end is not None and life.end["state"] == "failed"
        if ended and failures <= max_failures and row["deadline_at"] is None:
            yield Broken("executions", f"failed for good after {failures} failures of {max_failures + 1}")


def _executions(story: Story, lives: list[Life]) -> Iterator[Broken]:
    """I8: an attempt begins once at most, and there are at most max_failures + 1 of them a life."""
    # In any order: whoever was stopped just before it begins one has an heir that began before it.
    begun = [line.attempt for line in story.lines if line.event == "begin"]
    if len(begun) != len(set(begun)):
        yield Broken("executions", f"I2: attempts began as {begun}")
    most = json.loads(story.row["options"])["max_failures"] + 1
    for life in lives:
        count = sum(map(life.has, begun))
        if count > most:
            yield Broken("executions", f"I8: {count} executions")
    claimed = {change["attempt"] for change in story.changes if change["state"] == "running"}
    if not claimed.issuperset(begun):
        yield Broken("executions", f"I2: attempts {begun} began, and {sorted(claimed)} were claimed")
    failed = {one["number"] for one in story.attempts}
    last = story.row["attempt"]
    if story.row["state"] in COMPLETED and not failed.issuperset(number for number in begun if number != last):
        yield Broken("executions", f"I8: attempts {begun} began, and those that failed are {sorted(failed)}")
    if story.row["state"] == "succeeded" and last in failed:
        yield Broken("zombie", f"I2: succeeded in attempt {last}, which had failed")


def _callbacks(story: Story, lives: list[Life]) -> Iterator[Broken]:
    """I4: what a callback writes is there exactly once for each life in which it is done, and not before."""
    done = Counter(OUTCOMES[life.last["state"]] for life in lives if life.callback[-1:] == ["done"])
    if Counter(story.effects) != done:
        yield Broken("callback", f"I4: callbacks of {dict(done)} are done, and their effects are {story.effects}")
    for life in lives:
        if life.callback not in ([], ["pending"], ["done"], ["pending", "done"]):
            yield Broken("callback", f"I4: the callback became {life.callback}")
        if not story.is_removed and (life.end is not None and bool(story.row["on_complete"])) != bool(life.callback):
            yield Broken("callback", f"I4: callback {life.callback}, run {life.last['state']}")
        if life is not lives[-1] and life.callback[-1:] == ["pending"]:
            yield Broken("callback", "I4: started afresh, and its callback was pending")
    if not story.is_removed and story.row["callback_state"] != (lives[-1].last["callback"] if lives else "none"):
        yield Broken("callback", f"I4: callback {story.row['callback_state']}, and the history says something else")


def _end(story: Story) -> Iterator[Broken]:
    """I1: the run has ended, nobody owns it, and nothing is owed."""
    row = story.row
    if row["state"] not in COMPLETED:
        yield Broken("lost", f"I1: is {row['state']}")
    if row["callback_state"] == "pending" or row["callback_worker"] is not None:
        yield Broken("callback", f"I4: callback {row['callback_state']} (worker {row['callback_worker']})")
