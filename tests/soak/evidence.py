"""What a soak shows: what was injected, what was lost, and how fast work went on."""

import bisect
import heapq
import statistics
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from crash_oracle import Broken, Story
from crash_rules import is_retry
from crash_scene import Scene
from crash_told import read_told

from .faults import Injector
from .fleet import Fleet
from .plan import CLIENTS, OWNERS, WORKERS

PROMISES = {
    "lost": "runs lost (I1)",
    "callback": "callbacks missing, or run twice (I4)",
    "zombie": "reports of superseded attempts that were accepted (I2)",
    "canceled": "canceled runs that changed (I5)",
    "executions": "executions beyond what is allowed, or unaccounted for (I8)",
    "early": "attempts that began before they were due (I7)",
    "removed": "runs removed that retention keeps (I9)",
    "told": "histories of status, cancel and retry that no order explains",
    "illegal": "other illegal states (I2, I3, I6)",
    "damage": "damage to the database",
    "left": "workers left behind",
}
KILLS = {"kill", "kill at a write"}
SLOWEST = 10
"""Of so many of the slowest recoveries it is told which they were."""


class Evidence:
    """Collects it, a run at a time."""

    def __init__(self, kind: str, seed: int, fleet: Fleet, injector: Injector, took_s: float) -> None:
        self.kind = kind
        self.seed = seed
        self.took_s = took_s
        self.injected = Counter(injector.count)
        self.injected["processes that a run or a callback killed"] = fleet.deaths_of_their_own
        self.injected["processes that found no database when they began"] = fleet.starts_in_vain
        self.unexpected = fleet.unexpected
        self.broken: list[tuple[str, Broken]] = []
        self.runs: Counter[str] = Counter()
        self.executions = self.lost_attempts = self.refused = self.retries = self.effects = 0
        self.most_losses = self.late = 0
        self.taken_for_dead: list[str] = []
        self.recoveries_s: defaultdict[str, list[float]] = defaultdict(list)
        self.resumptions_s: list[float] = []
        """How long after each return of the server the next execution began."""
        self._resumed_s: defaultdict[str, list[float]] = defaultdict(list)
        self.figures: dict[str, Any] = {}
        self._injuries = fleet.injuries
        self._outages = injector.outages
        self._begun: list[int] = []
        self._slowest: list[tuple[float, str, int, str]] = []
        self._removed: set[str] = set()
        self._reader = getattr(injector, "reader", None)

    def see(self, run_id: str, story: Story) -> None:
        """Take in what happened to a run."""
        begun = [line for line in story.lines if line.event == "begin"]
        self._begun += [line.at_us for line in begun]
        self.executions += len(begun)
        self.retries += sum(map(is_retry, story.changes))
        self.effects += len(story.effects)
        self.late += sum(again.attempt < line.attempt for line, again in pairwise(begun))
        if story.is_removed:
            self._removed.add(run_id)
            self.runs["removed"] += 1
            return
        self.runs[story.row["state"]] += 1
        lost = {one["number"] for one in story.attempts if one["error_type"] == "WorkerLost"}
        self.lost_attempts += len(lost)
        self.refused += len({line.attempt for line in story.lines if line.event == "end"} & lost)
        if not any(death in story.row["args"] for death in ("kill", "exit", "abort", "segfault")):
            self.most_losses = max(self.most_losses, len(lost))
        for line, again in pairwise(begun):
            if line.attempt in lost:
                self._account_for(run_id, line.pid, line.at_us, again.at_us)

    def _account_for(self, run_id: str, pid: int, begun_at_us: int, again_at_us: int) -> None:
        """Find what cut an execution off, and note how long the next one took to begin."""
        between = [(at, what) for at, what in self._injuries.get(pid, []) if at <= again_at_us]
        after = [(at, what) for at, what in between if at >= begun_at_us]
        if not between:
            self.taken_for_dead.append(run_id)
            return
        at, what = after[0] if after else between[-1]
        what = "SIGKILL" if what in KILLS else what
        took_s = (again_at_us - at) / 1e6
        self.recoveries_s[what].append(took_s)
        heapq.heappush(self._slowest, (took_s, what, pid, run_id))
        if len(self._slowest) > SLOWEST:
            heapq.heappop(self._slowest)

    def finish(self, scene: Scene) -> None:
        """Compare with what the database and the clients say as a whole."""
        aged = {row["run_id"] for row in scene.rows("SELECT run_id FROM crash_aged")}
        self.broken += [(run_id, Broken("removed", "I9: was not old")) for run_id in self._removed - aged]
        begun = sorted(self._begun)
        for outage in self._outages:
            place = bisect.bisect_right(begun, outage.back_at_us)
            if place < len(begun):
                resumed_s = (begun[place] - outage.back_at_us) / 1e6
                self.resumptions_s.append(resumed_s)
                self._resumed_s[outage.kind].append(resumed_s)
        told = read_told(scene.folder)
        self.figures |= {
            "calls of clients": told.calls,
            "calls that got no answer": told.unanswered,
            "runs whose status, cancel and retry were judged": len(told.operations),
            "calls judged": sum(map(len, told.operations.values())),
        }

    @property
    def total(self) -> int:
        """How many runs there have been."""
        return self.runs.total()

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, and nothing went wrong that was not meant to."""
        return not self.broken and not self.unexpected

    @property
    def violations(self) -> dict[str, int]:
        """How often each promise was broken."""
        counted = Counter(one.rule for _, one in self.broken)
        return {name: counted[rule] for rule, name in PROMISES.items()}

    def as_json(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {
            "database": self.kind,
            "seed": self.seed,
            "took_s": round(self.took_s, 1),
            "runs": self.total,
            "states": dict(self.runs),
            "injected": dict(self.injected),
            "violations": self.violations,
            "work": self._work(),
            "times_s": {name: _times(times) for name, times in self._times().items()},
            "broken": [[name, *one] for name, one in self.broken[:100]],
            "unexpected": self.unexpected,
            "slowest": sorted(self._slowest, reverse=True),
            "taken for dead": self.taken_for_dead,
        }

    def _work(self) -> dict[str, Any]:
        work: dict[str, Any] = {
            "executions": self.executions,
            "executions lost with their worker": self.lost_attempts,
            "of these, had returned, then or later, which counts for nothing": self.refused,
            "most such losses of one run that kills nobody": self.most_losses,
            "executions taken from a worker that nothing had been done to": len(self.taken_for_dead),
            "executions that began after their heirs, and counted for nothing": self.late,
            "callbacks": self.effects,
            "runs started afresh by retry": self.retries,
            **self.figures,
        }
        if self.kind == "sqlite":
            work["who writes the file: workers, clients, and connections of clients"] = WORKERS + CLIENTS + OWNERS
        if self._reader is not None and self._reader.read_s:
            work["seconds that somebody read for"] = round(self._reader.read_s)
            work["largest WAL meanwhile, MiB"] = round(self._reader.largest / 2**20)
            work["largest WAL before and after, MiB"] = round(self._reader.otherwise / 2**20)
            shrunk = self._reader.shrunk_after_s
            work["it was small again after, s"] = "never" if shrunk is None else round(shrunk, 1)
        return work

    def _times(self) -> dict[str, list[float]]:
        """Return the measured times by what they are."""
        times = {f"recovery after: {what}": found for what, found in sorted(self.recoveries_s.items())}
        for kind, resumed_s in sorted(self._resumed_s.items()):
            times[f"server away: {kind}"] = [outage.took_s for outage in self._outages if outage.kind == kind]
            times[f"from then until the next execution, after {kind}"] = resumed_s
        return times

    def table(self) -> str:
        """Return all of it for people, as Markdown."""
        states = ", ".join(f"{count:,} {state}" for state, count in self.runs.most_common())
        lines = [
            f"### {self.kind}, seed {self.seed}",
            "",
            f"{self.total:,} runs in {self.took_s:,.0f} s: {states}.",
            "",
            *_table("injected", "times", self.injected.items()),
            *_table("broken promises", "times", self.violations.items()),
            *_table("work", "", self._work().items()),
            "| time, s | times | p50 | p95 | max |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, times in self._times().items():
            if times:
                found = _times(times)
                lines.append(
                    f"| {name} | {found['count']:,} | {found['p50']:.2f} | {found['p95']:.2f} | {found['max']:.2f} |"
                )
        lines += [f"- UNEXPECTED: {one}" for one in self.unexpected[:20]]
        lines += [f"- BROKEN: {name}: {one.rule}: {one.text}" for name, one in self.broken[:20]]
        return "\n".join(lines)


def _table(what: str, value: str, rows: Any) -> list[str]:
    return [
        f"| {what} | {value} |",
        "|---|---:|",
        *(f"| {name} | {count:,} |" if isinstance(count, int) else f"| {name} | {count} |" for name, count in rows),
        "",
    ]


def _times(times_s: list[float]) -> dict[str, float]:
    times = sorted(times_s)
    if not times:
        return {"count": 0}
    return {
        "count": len(times),
        "p50": round(statistics.median(times), 3),
        "p95": round(times[int(len(times) * 0.95)], 3),
        "max": round(times[-1], 3),
    }
