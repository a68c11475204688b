"""
The invariants I1 to I9 over the story of one run: each rule says what of it is broken.

What is known of a run are the row, the attempts, every change that a trigger saw, what its callbacks wrote, and what
its functions logged. A life of a run goes from its start, or a `retry`, to its completion.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
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
    """
    What happened to one run.

    Attributes:
        row: Nothing if it has been removed.
        attempts: Those that did not succeed; of a run that has been removed, as they were when it was.
        effects: The outcomes that its callbacks have written; *shown*: with the result, as a change's note has it.
        kept: What it was started with: its row, or what was noted of it when it was removed; or nothing.
        clocks_apart_us: The database's clock, less that of *lines*.
    """

    row: dict[str, Any]
    attempts: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    effects: list[str]
    lines: list[Line]
    kept: dict[str, Any] = field(default_factory=dict)
    shown: list[str | None] = field(default_factory=list)
    clocks_apart_us: int = 0

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
    def last(self) -> tuple[str, int]:
        """In which state it is, or was before it was removed, and its last attempt."""
        if self.row:
            return self.row["state"], self.row["attempt"]
        return (self.changes[-1]["old_state"], self.changes[-1]["attempt"]) if self.changes else ("pending", 0)

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
    yield from _unchanged(story)
    if story.kept:
        yield from _attempts(story, lives)
        yield from _executions(story, lives)
    if complete and story.row:
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


def _unchanged(story: Story) -> Iterator[Broken]:
    """I3: what a completed run resulted in does not change until a retry."""
    for before, change in pairwise(story.changes):
        if change["old_state"] == change["state"] and change["state"] in COMPLETED and change["note"] != before["note"]:
            yield Broken("illegal", f"I3: {before['note']} became {change['note']}")
    row = story.row
    if story.changes and row and row["state"] in COMPLETED:
        shown = {
            "succeeded": f"success:{row['result']}",
            "failed": f"failed:{row['error_type']}: {row['error']}",
            "canceled": "canceled",
        }[row["state"]]
        if shown != story.changes[-1]["note"]:
            yield Broken("illegal", f"I3: {story.changes[-1]['note']} became {shown}, unseen")


def _attempts(story: Story, lives: list[Life]) -> Iterator[Broken]:
    """I8: every failure is recorded once and counted once, and there are not more than the policy allows."""
    max_failures = json.loads(story.kept["options"])["max_failures"]
    _, last = story.last
    numbers = [one["number"] for one in story.attempts]
    if any(number > last for number in numbers):
        yield Broken("executions", f"attempts {numbers} are recorded, and the last one was {last}")
    failed = [one["number"] for one in story.attempts if one["error_type"] != "Canceled"]
    if not lives and failed:
        yield Broken("executions", f"attempts {failed} are recorded, and nothing has happened")
    for life in lives:
        failures, recorded = life.last["failures"], sum(life.has(number) for number in failed)
        if failures > max_failures + 1:
            yield Broken("executions", f"I8: {failures} failures, and max_failures is {max_failures}")
        if recorded != failures:
            yield Broken("executions", f"I8: {failures} failures, and {recorded} recorded attempts")


def _executions(story: Story, lives: list[Life]) -> Iterator[Broken]:
    """I8: an attempt begins once at most, and there are at most max_failures + 1 of them a life."""
    # In any order: whoever was stopped just before it begins one has an heir that began before it.
    begun = [line.attempt for line in story.lines if line.event == "begin"]
    if len(begun) != len(set(begun)):
        yield Broken("executions", f"I2: attempts began as {begun}")
    most = json.loads(story.kept["options"])["max_failures"] + 1
    for life in lives:
        count = sum(map(life.has, begun))
        if count > most:
            yield Broken("executions", f"I8: {count} executions")
    claimed = {change["attempt"] for change in story.changes if change["state"] == "running"}
    if not claimed.issuperset(begun):
        yield Broken("executions", f"I2: attempts {begun} began, and {sorted(claimed)} were claimed")
    failed = {one["number"] for one in story.attempts}
    state, last = story.last
    if state in COMPLETED and not failed.issuperset(number for number in begun if number != last):
        yield Broken("executions", f"I8: attempts {begun} began, and those that failed are {sorted(failed)}")
    if state == "succeeded" and last in failed:
        yield Broken("zombie", f"I2: succeeded in attempt {last}, which had failed")


def _callbacks(story: Story, lives: list[Life]) -> Iterator[Broken]:
    """I4: what a callback writes is there exactly once for each life in which it is done, and not before."""
    ends = [life.end for life in lives if life.callback[-1:] == ["done"]]
    done = Counter(OUTCOMES[end["state"]] for end in ends if end is not None)
    if Counter(story.effects) != done:
        yield Broken("callback", f"I4: callbacks of {dict(done)} are done, and their effects are {story.effects}")
    results = Counter(end["note"] for end in ends if end is not None)
    if None not in story.shown and Counter(story.shown) != results:  # some write no more than the outcome
        yield Broken("callback", f"I4: results {dict(results)} were called back with, and {story.shown} were told")
    for life in lives:
        if life.callback not in ([], ["pending"], ["done"], ["pending", "done"]):
            yield Broken("callback", f"I4: the callback became {life.callback}")
        if story.kept and (life.end is not None and bool(story.kept["on_complete"])) != bool(life.callback):
            yield Broken("callback", f"I4: callback {life.callback}, run {life.last['state']}")
        if life.callback[-1:] == ["pending"]:
            if life is not lives[-1]:
                yield Broken("callback", "I4: started afresh, and its callback was pending")
            elif story.is_removed:
                yield Broken("callback", "I4: removed, and its callback was never done")
    if not story.is_removed and story.row["callback_state"] != (lives[-1].last["callback"] if lives else "none"):
        yield Broken("callback", f"I4: callback {story.row['callback_state']}, and the history says something else")


def _end(story: Story) -> Iterator[Broken]:
    """I1: the run has ended, nobody owns it, and nothing is owed."""
    row = story.row
    if row["state"] not in COMPLETED:
        yield Broken("lost", f"I1: is {row['state']}")
    if row["callback_state"] == "pending" or row["callback_worker"] is not None:
        yield Broken("callback", f"I4: callback {row['callback_state']} (worker {row['callback_worker']})")
