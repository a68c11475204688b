"""
The oracle of the crash tests: whether what the processes left behind is what was promised.

It believes four witnesses: the database, the table ``effects`` that callbacks write, the log that functions append to,
and the clients' own log of what they were told. Triggers record every change of a run in the transaction that makes it,
so that no state goes unseen. The rules for one run are in `crash_rules`, those for what was told in `linearizability`.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from crash_database import CrashDatabase, Look
from crash_rules import Broken, Story, broken_rules
from crash_steps import steps
from crash_times import broken_times
from crash_told import Told, read_told
from crash_witness import Line, read_log
from linearizability import Operation, explain

__all__ = ["Broken", "Story", "check", "examine", "is_complete", "is_quiet", "tell_stories"]


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


def tell_stories(database: CrashDatabase, folder: Path) -> Iterator[tuple[str, Story]]:
    """Read what happened to every run, one after the other, from one state of the database."""
    clocks_apart_us = (time.time_ns() - time.monotonic_ns()) // 1000
    known = len(read_log(folder))
    with database.looking() as look:
        tables = [
            _by_run(look, "SELECT r.*, r.id AS run_id FROM action_retrier_runs AS r ORDER BY id"),
            _by_run(look, "SELECT * FROM action_retrier_attempts ORDER BY run_id, number"),
            _by_run(look, database.history),
            _by_run(look, "SELECT * FROM effects ORDER BY run_id"),
        ]
        heads = [next(table, None) for table in tables]  # the database is read as of now
        lines: dict[str, list[Line]] = defaultdict(list)
        for number, line in enumerate(read_log(folder)):
            # Processes go on: what began after the database was read may have been claimed after it too.
            if number < known or line.event != "begin":
                lines[line.run_id].append(line)
        while any(heads):
            run_id = min(head[0] for head in heads if head is not None)
            found: list[list[dict[str, Any]]] = []
            for number, head in enumerate(heads):
                is_its = head is not None and head[0] == run_id
                found.append(head[1] if head is not None and is_its else [])
                if is_its:
                    heads[number] = next(tables[number], None)
            rows, attempts, changes, effects = found
            row = rows[0] if rows else {}
            kept = row
            if not row and changes and changes[-1]["state"] == "removed":
                kept = json.loads(changes[-1]["note"])
                attempts = attempts or kept["attempts"]
            yield (
                run_id,
                Story(
                    row,
                    attempts,
                    changes,
                    [one["outcome"] for one in effects],
                    lines.pop(run_id, []),
                    kept=kept,
                    shown=[one["shown"] for one in effects],
                    clocks_apart_us=clocks_apart_us,
                ),
            )
    for run_id, left in lines.items():
        if any(line.event in {"begin", "callback"} for line in left):
            yield run_id, Story({}, [], [], [], left)


def _by_run(look: Look, query: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    run_id, rows = "", []
    for row in look.stream(query):
        if row["run_id"] != run_id and rows:
            yield run_id, rows
            rows = []
        run_id = row["run_id"]
        rows.append(row)
    if rows:
        yield run_id, rows


def check(
    database: CrashDatabase, folder: Path, acknowledged: Iterable[str], *, complete: bool = True
) -> dict[str, Story]:
    """
    Assert every invariant, and return the runs' stories.

    Args:
        database: Where the runs are.
        folder: Where the logs are.
        acknowledged: Ids that were returned to whoever started the runs, beside those that clients have logged.
        complete: All runs must have ended. When not, what holds at any moment is checked.
    """
    stories = {}

    def keep(run_id: str, story: Story) -> None:
        if not story.is_removed:
            stories[run_id] = story

    broken = examine(database, folder, acknowledged, complete=complete, see=keep)
    assert not broken, "\n".join(f"{name}: {one.text}" for name, one in broken)
    return stories


def examine(
    database: CrashDatabase,
    folder: Path,
    acknowledged: Iterable[str] = (),
    *,
    complete: bool = True,
    see: Callable[[str, Story], None] = lambda *_: None,
) -> list[tuple[str, Broken]]:
    """Return all that is broken, by run id; *see* is shown each run's story. Args as for `check`."""
    told = read_told(folder)
    missing = {*acknowledged, *told.acknowledged}
    found: list[tuple[str, Broken]] = []
    there: Counter[str] = Counter()
    for run_id, story in tell_stories(database, folder):
        missing.discard(run_id)
        see(run_id, story)
        broken = [*broken_rules(story, complete=complete), *broken_times(story)]
        if run_id in told.rolled_back:
            broken.append(Broken("rolled back", "I6: its start was rolled back"))
        there[_tag(story)] += 1
        broken += _keys(run_id, story, told)
        operations = [_dated(one, story.clocks_apart_us) for one in told.operations.pop(run_id, [])]
        # Without clients that log what they do, nobody knows who has canceled a run.
        problem = None
        if told.calls:
            seen = steps(story.changes, told.writes, story.clocks_apart_us, database.seen_after_us)
            problem = explain(seen, operations)
        if problem is not None:
            broken.append(Broken("told", problem))
        found += [(run_id, one) for one in broken]
    found += [(run_id, Broken("lost", "I1: lost")) for run_id in missing]
    if complete:
        found += _batches(told, there)
        with database.looking() as look:
            left = look.rows("SELECT id FROM action_retrier_workers")
        found += [("worker", Broken("left", f"worker {row['id']} is left")) for row in left]
    found += [("database", Broken("damage", problem)) for problem in database.damage()]
    return found


def _tag(story: Story) -> str:
    """Return under which tag a run was started: one that has been removed had it as well."""
    return str(json.loads(story.kept.get("args", "{}")).get("tag", ""))


def _keys(run_id: str, story: Story, told: Told) -> Iterator[Broken]:
    """A key has one run, and whoever asked for it was told of that one."""
    key = story.row.get("idempotency_key")
    if key is not None and told.keys.get(key, {run_id}) != {run_id}:
        yield Broken("illegal", f"I1: of its key {told.keys[key]} was told")


def _batches(told: Told, there: Counter[str]) -> Iterator[tuple[str, Broken]]:
    """I1, I6: what was started together is there as a whole, or not at all."""
    for tag, batch in told.batches.items():
        allowed = {"started": {batch.count}, "rolled back": {0}}.get(batch.fate, {0, batch.count})
        if there[tag] not in allowed:
            text = f"I1, I6: {there[tag]} of {batch.count} runs are there, and its fate was told as {batch.fate}"
            rule = "lost" if there[tag] < batch.count else "illegal"
            yield tag, Broken("rolled back" if batch.fate == "rolled back" else rule, text)


def _dated(operation: Operation, clocks_apart_us: int) -> Operation:
    """Return an operation by the clock of the database."""
    return Operation(
        operation.kind, operation.answer, operation.invoked + clocks_apart_us, operation.answered + clocks_apart_us
    )
