"""What a soak shows: what was injected, what was lost, and how fast work went on."""

import bisect
import heapq
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from crash_oracle import Broken, Story
from crash_rules import is_retry
from crash_scene import Scene
from crash_told import read_told

from .faults import Injector
from .fleet import Fleet
from .markdown import table
from .names import CAME_OF_IT, NAMES, PROMISES, RECOVERY_IS, UNPLANNED, WORK, key, long
from .plan import CLIENTS, OWNERS, WORKERS, Plan

_VERSIONS = {"sqlite": "SELECT sqlite_version() AS version", "postgres": "SHOW server_version"}
EXCUSES_US = 30_000_000
"""What was done to a worker longer than that before it began an execution is over: no reason to lose that one."""
SLOWEST = 10
"""Of so many of the slowest recoveries it is told which they were."""


class Evidence:
    """Collects it, a run at a time."""

    def __init__(
        self,
        kind: str,
        seed: int,
        made: Plan,
        fleet: Fleet,
        injector: Injector,
        *,
        took_s: float,
        stopped_s: float | None = None,
    ) -> None:
        """
        Begin to collect.

        Args:
            kind: Of database.
            seed: That made the plan.
            made: The plan.
            fleet: Of processes.
            injector: Of faults.
            took_s: How long all of it took.
            stopped_s: After how long somebody stopped it, if anybody did.
        """
        self.kind = kind
        self.seed = seed
        self.took_s = took_s
        self.requested_s = made.ends_s
        self.stopped_s = stopped_s
        self.database_version = ""
        self._planned = Counter(fault.kind for _, fault in made.faults)
        self._count = injector.count + Counter(
            {"own death": fleet.deaths_of_their_own, "start in vain": fleet.starts_in_vain}
        )
        self._came_of_it = injector.came_of_it
        self._cannot = {kind: why for kind, why in injector.cannot.items() if self._planned[kind]}
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
        self._last_sign_us: defaultdict[int, int] = defaultdict(int)
        self._unexplained: list[tuple[str, int, int]] = []
        self._slowest: list[tuple[float, str, int, str]] = []
        self._removed: set[str] = set()
        self._reader = getattr(injector, "reader", None)

    def see(self, run_id: str, story: Story) -> None:
        """Take in what happened to a run."""
        begun = [line for line in story.lines if line.event == "begin"]
        self._begun += [line.at_us for line in begun]
        for line in story.lines:
            self._last_sign_us[line.pid] = max(self._last_sign_us[line.pid], line.at_us)
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
        since_us = begun_at_us - EXCUSES_US
        between = [(at, what) for at, what in self._injuries.get(pid, []) if since_us <= at <= again_at_us]
        after = [(at, what) for at, what in between if at >= begun_at_us]
        if not between:
            self._unexplained.append((run_id, pid, again_at_us))
            return
        at, what = after[0] if after else between[-1]
        took_s = (again_at_us - at) / 1e6
        self.recoveries_s[NAMES[what]].append(took_s)
        heapq.heappush(self._slowest, (took_s, NAMES[what], pid, run_id))
        if len(self._slowest) > SLOWEST:
            heapq.heappop(self._slowest)

    def _judge_unexplained(self) -> None:
        """See whether executions were taken from the living: their own deaths we may have noticed after others did."""
        for run_id, pid, again_at_us in self._unexplained:
            has_died = any(what == "own death" and at > again_at_us for at, what in self._injuries.get(pid, []))
            if not has_died or self._last_sign_us[pid] > again_at_us:
                self.taken_for_dead.append(run_id)
                text = f"I1: taken from process {pid}, to which nothing was done"
                self.broken.append((run_id, Broken("taken", text)))

    def finish(self, scene: Scene) -> None:
        """Compare with what the database and the clients say as a whole."""
        self._judge_unexplained()
        aged = {row["run_id"] for row in scene.rows("SELECT run_id FROM crash_aged")}
        self.broken += [(run_id, Broken("removed", "I9: was not old")) for run_id in self._removed - aged]
        begun = sorted(self._begun)
        for outage in self._outages:
            place = bisect.bisect_right(begun, outage.back_at_us)
            if place < len(begun):
                resumed_s = (begun[place] - outage.back_at_us) / 1e6
                self.resumptions_s.append(resumed_s)
                self._resumed_s[NAMES[outage.kind]].append(resumed_s)
        with scene.database.looking() as look:
            self.database_version = look.value(_VERSIONS[scene.database.kind])
        told = read_told(scene.folder)
        self.figures |= {
            "calls": told.calls,
            "unanswered_calls": told.unanswered,
            "judged_runs": len(told.operations),
            "judged_calls": sum(map(len, told.operations.values())),
        }

    @property
    def total(self) -> int:
        """How many runs there have been."""
        return self.runs.total()

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, nothing went wrong that was not meant to, and all did that was."""
        return not self.broken and not self.unexpected and not self.missing

    @property
    def injected(self) -> Counter[str]:
        """How many faults there were, by what they are called."""
        return Counter({NAMES[kind]: self._count[kind] for kind in self._kinds()})

    @property
    def missing(self) -> list[str]:
        """Of which faults fewer were injected than planned, although they can be, and nobody stopped it."""
        if self.stopped_s is not None:
            return []
        return [
            f"{NAMES[kind]}: {self._count[kind]} of {planned}"
            for kind, planned in self._planned.items()
            if self._count[kind] < planned and kind not in self._cannot
        ]

    @property
    def not_tried(self) -> list[str]:
        """What was planned, and cannot be done here."""
        whys: defaultdict[str, list[str]] = defaultdict(list)
        for kind, why in self._cannot.items():
            whys[why].append(NAMES[kind])
        return [f"{', '.join(names)} ({why})" for why, names in whys.items()]

    @property
    def broken_promises(self) -> dict[str, int]:
        """How often each promise was broken, by the rule."""
        counted = Counter(one.rule for _, one in self.broken)
        return {key(rule): counted[rule] for rule in PROMISES}

    @property
    def broken_promises_in_words(self) -> dict[str, int]:
        """The same for people."""
        return {name: self.broken_promises[key(rule)] for rule, name in PROMISES.items()}

    def as_json(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {
            "database": self.kind,
            "database_version": self.database_version,
            "seed": self.seed,
            "requested_duration_s": self.requested_s,
            "stopped_after_s": None if self.stopped_s is None else round(self.stopped_s, 1),
            "took_s": round(self.took_s, 1),
            "is_clean": self.is_clean,
            "runs": self.total,
            "states": dict(self.runs),
            "faults": {
                key(kind): {
                    "name": NAMES[kind],
                    "planned": self._planned[kind],
                    "injected": self._count[kind],
                    **({key(CAME_OF_IT[kind]): self._came_of_it[kind]} if kind in CAME_OF_IT else {}),
                }
                for kind in self._kinds()
            },
            "not_tried": self.not_tried,
            "injected_too_little": self.missing,
            "broken_promises": self.broken_promises,
            "work": self._work(),
            "times_s": {
                "recovery": {key(name): _times(times) for name, times in sorted(self.recoveries_s.items())},
                "server_away": {key(name): _times(times) for name, times in self._away_s().items()},
                "next_execution_once_it_is_back": {key(name): _times(times) for name, times in self._resumed_s.items()},
            },
            "broken": [{"what": name, "rule": key(one.rule), "text": one.text} for name, one in self.broken[:100]],
            "unexpected": self.unexpected,
            "slowest_recoveries": [
                {"took_s": round(took_s, 3), "fault": key(name), "pid": pid, "run_id": run_id}
                for took_s, name, pid, run_id in sorted(self._slowest, reverse=True)
            ],
            "taken_for_dead": self.taken_for_dead,
        }

    def _kinds(self) -> list[str]:
        """Return which faults there is something to tell of: those that were planned, and those that followed."""
        return [kind for kind in NAMES if self._planned[kind] or self._count[kind]]

    def _work(self) -> dict[str, Any]:
        """Return what has been counted, by its key in `WORK`."""
        work: dict[str, Any] = {
            "executions": self.executions,
            "lost_executions": self.lost_attempts,
            "refused_reports": self.refused,
            "most_losses_of_a_run": self.most_losses,
            "late_beginnings": self.late,
            "callbacks": self.effects,
            "retries": self.retries,
            **self.figures,
        }
        if self.kind == "sqlite":
            work["writers"] = WORKERS + CLIENTS + OWNERS
        if self._reader is not None and self._reader.read_s:
            work["reader_s"] = round(self._reader.read_s)
            work["wal_while_read_mib"] = round(self._reader.largest / 2**20)
            work["wal_otherwise_mib"] = round(self._reader.otherwise / 2**20)
            shrunk = self._reader.shrunk_after_s
            work["wal_small_again_after_s"] = None if shrunk is None else round(shrunk, 1)
        return work

    def _away_s(self) -> dict[str, list[float]]:
        away: defaultdict[str, list[float]] = defaultdict(list)
        for outage in self._outages:
            away[NAMES[outage.kind]].append(outage.took_s)
        return away

    def table(self) -> str:
        """Return all of it for people, as Markdown."""
        states = ", ".join(f"{count:,} {state}" for state, count in self.runs.most_common())
        title = f"### {self.kind}, seed {self.seed}"
        if self.stopped_s is not None:
            title += f", stopped after {long(self.stopped_s)} of {long(self.requested_s)}"
        lines = [
            title,
            "",
            f"{self.total:,} runs in {self.took_s:,.0f} s, with the time that the last of them took to end: {states}.",
            "",
            "What was done to the processes, the database and the network, as planned by the seed. What has no plan followed"
            " from it, or from what runs do.",
            "",
            "| fault | planned | injected | what came of it |",
            "|---|---:|---:|---|",
            *(self._fault_row(kind) for kind in self._kinds()),
            "",
            *(f"NOT tried: {one}.\n" for one in self.not_tried),
            "How often a promise was broken, by any of these runs. I1 to I9 are told in docs/reliability.md.",
            "",
            *table(["broken promise", "times"], _counted(self.broken_promises_in_words.items())),
            "What workers and clients did meanwhile. An execution is one beginning of a run's action.",
            "",
            *table(["work", ""], _counted((WORK[name], value) for name, value in self._work().items())),
            RECOVERY_IS,
            "",
            "| time, s | times | p50 | p95 | max |",
            "|---|---:|---:|---:|---:|",
            *(_times_row(f"recovery after: {name}", times) for name, times in sorted(self.recoveries_s.items())),
        ]
        for name, times in self._away_s().items():
            lines.append(_times_row(f"server away: {name}", times))
            lines.append(_times_row(f"from then until the next execution begins: {name}", self._resumed_s[name]))
        lines += ["", *(f"- INJECTED TOO LITTLE: {one}" for one in self.missing)]
        lines += [f"- UNEXPECTED: {one}" for one in self.unexpected[:20]]
        lines += [f"- BROKEN: {name}: {one.rule}: {one.text}" for name, one in self.broken[:20]]
        return "\n".join(line for line in lines if line is not None).rstrip()

    def _fault_row(self, kind: str) -> str:
        planned = "–" if kind in UNPLANNED else f"{self._planned[kind]:,}"
        came = f"{self._came_of_it[kind]:,} {CAME_OF_IT[kind]}" if kind in CAME_OF_IT else ""
        if kind in self._cannot:
            came = f"NOT tried: {self._cannot[kind]}"
        return f"| {NAMES[kind]} | {planned} | {self._count[kind]:,} | {came} |"


def _counted(counts: Iterable[tuple[str, Any]]) -> Iterator[list[str]]:
    return ([name, _shown(count)] for name, count in counts)


def _shown(value: Any) -> str:
    if value is None:
        return "never"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _times_row(name: str, times_s: list[float]) -> str | None:
    if not times_s:
        return None
    found = _times(times_s)
    return f"| {name} | {found['count']:,} | {found['p50']:.2f} | {found['p95']:.2f} | {found['max']:.2f} |"


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
