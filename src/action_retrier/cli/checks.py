"""What the doctor makes of the workers and of what waits for them. It asks nobody."""

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .._codec import loads
from .._ops.health import Health
from .._ops.reads import instant
from .._statements import Row
from .terminal import clean, span

Check = tuple[str, Literal["ok", "warning", "error"], str]
"""What was checked, the verdict, and what was found and what to do."""

_MANY_TRIES = 10  # of a callback; with its backoff that is some two minutes
_START = "start one with `action-retrier worker MODULE:APP`"


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker that holds its lease, and what it can do."""

    id: str
    host: str
    pid: int
    since: str
    queues: Collection[str] | None
    actions: Collection[str]
    mutations: Collection[str]

    def serves(self, queue: str) -> bool:
        """Tell whether it takes runs from *queue*."""
        return self.queues is None or queue in self.queues


@dataclass(frozen=True, slots=True)
class Judgement:
    """The checks, and the live workers as JSON."""

    checks: list[Check]
    workers: list[dict[str, Any]]


def judge(health: Health, dead: Collection[str], silent: Collection[str] = ()) -> Judgement:
    """Judge what was read. *dead* are those workers whose lease has ended, *silent* those that give no sign of life."""
    gone = {*dead, *silent}
    live = [_live_worker(row) for row in health.workers if row["id"] not in gone]
    checks = [
        *_check_workers(health, live),
        *_check_silent([row for row in health.workers if row["id"] in silent]),
        _check_dead(health, live, dead),
        _check_owners(health, live, dead),
        _check_oldest(health),
        *_check_blocked(health, live),
        *_check_overdue(health, live),
        *_check_callbacks(health, live),
    ]
    return Judgement(checks, [_as_json(worker) for worker in live])


def _live_worker(row: Row) -> LiveWorker:
    return LiveWorker(
        id=row["id"],
        host=row["host"],
        pid=row["pid"],
        since=instant(row["started_at"]).isoformat(timespec="seconds"),
        queues=None if row["queues"] is None else loads(row["queues"]),
        actions=loads(row["actions"]),
        mutations=loads(row["mutations"]),
    )


def _as_json(worker: LiveWorker) -> dict[str, Any]:
    queues = None if worker.queues is None else list(worker.queues)
    return {"id": worker.id, "host": worker.host, "pid": worker.pid, "since": worker.since, "queues": queues}


def _check_workers(health: Health, live: list[LiveWorker]) -> Iterator[Check]:
    if not live:
        waits = bool(health.lanes or health.callbacks)
        told = f"none is running{', and something is waiting' if waits else ''}: {_START}"
        yield "workers", "error" if waits else "warning", told
    for worker in live:
        queues = "all queues" if worker.queues is None else f"queues {', '.join(map(clean, worker.queues))}"
        yield "worker", "ok", f"pid {worker.pid} on {clean(worker.host)} since {worker.since}, {queues}"


def _check_silent(silent: list[Row]) -> Iterator[Check]:
    for row in silent:
        told = f"pid {row['pid']} on {clean(row['host'])} has given no sign for longer than its lease"
        remedy = "it is stopped (SIGSTOP, a debugger), or its lock file was removed; the others take over its runs"
        yield "silent worker", "warning", f"{told}: {remedy}"


def _check_dead(health: Health, live: list[LiveWorker], dead: Collection[str]) -> Check:
    gone = [row for row in health.workers if row["id"] in dead]
    if not gone:
        return "dead workers", "ok", "none"
    names = ", ".join(f"pid {row['pid']} on {clean(row['host'])}" for row in gone[:5])
    more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""  # noqa: PLR2004 - as above
    return "dead workers", "warning", f"{len(gone)} ended without signing off ({names}{more}): {_recovery(live)}"


def _check_owners(health: Health, live: list[LiveWorker], dead: Collection[str]) -> Check:
    """Runs and callbacks whose worker is dead, or has no row any more."""
    what = "interrupted runs"
    registered = {row["id"] for row in health.workers}
    orphaned = [row for row in health.owned if row["id"] in dead or row["id"] not in registered]
    if not orphaned:
        return what, "ok", "none"
    runs, callbacks = sum(row["runs"] for row in orphaned), sum(row["callbacks"] for row in orphaned)
    told = f"{runs} runs and {callbacks} callbacks are with workers that are dead or gone: {_recovery(live)}"
    return what, "warning" if live else "error", told


def _recovery(live: list[LiveWorker]) -> str:
    if live:
        return "the live workers recover what they left, within seconds; look again"
    return f"any worker recovers what they left; {_START}"


def _check_oldest(health: Health) -> Check:
    what = "oldest due run"
    if not health.lanes:
        return what, "ok", "nothing is due"
    oldest = max(health.lanes, key=lambda row: int(row["waited"]))
    told = f"has waited for {span(oldest['waited'] / 1e6)} ({_kind(oldest)})"
    return what, "warning" if health.overdue else "ok", told


def _check_blocked(health: Health, live: list[LiveWorker]) -> Iterator[Check]:
    """What no live worker would ever take: there is no need to wait until that shows."""
    known = {(row["queue"], row["action"], row["on_complete"]) for row in health.overdue}
    for row in health.lanes:
        if live and (row["queue"], row["action"], row["on_complete"]) not in known:
            problem = _problem(row, live)
            if problem is not None:
                yield "blocked runs", "warning", f"runs of {_kind(row)} wait: {problem}"


def _check_overdue(health: Health, live: list[LiveWorker]) -> Iterator[Check]:
    what = "stuck runs"
    if not health.overdue:
        yield what, "ok", "none has been due for over a minute"
    for row in health.overdue:
        told = f"{row['count']} of {_kind(row)}, due for up to {span(row['waited'] / 1e6)}"
        problem = _problem(row, live)
        if problem is None:
            yield what, "warning", f"{told}: the workers are busy; start more, or raise their --concurrency"
        else:
            yield what, "error", f"{told}: {problem}"


def _problem(row: Row, live: list[LiveWorker]) -> str | None:
    """Say why no live worker takes the runs of a lane; None if one does."""
    name = clean(row["action"])
    able = [worker for worker in live if row["action"] in worker.actions]
    if not able:
        remedy = f"or give them up with `action-retrier cancel --action {shlex.quote(name)}`"
        return f"no live worker knows the action {name}: start one whose App has it (--import), {remedy}"
    if row["on_complete"]:
        able = [worker for worker in able if row["on_complete"] in worker.mutations]
        if not able:
            return (
                f"no live worker that knows the action knows their callback {clean(row['on_complete'])}: "
                "start one whose App has both (--import)"
            )
    if not any(worker.serves(row["queue"]) for worker in able):
        return f"no live worker that could run them takes queue {clean(row['queue'])!r}: start one that does"
    return None


def _check_callbacks(health: Health, live: list[LiveWorker]) -> Iterator[Check]:
    what = "pending callbacks"
    if not health.callbacks:
        yield what, "ok", "none"
    for row in health.callbacks:
        name = clean(row["on_complete"])
        told = f"{row['count']} of {name}"
        if not any(row["on_complete"] in worker.mutations for worker in live):
            yield what, "error", f"{told}: no live worker knows it: start one whose App has it (--import)"
        elif row["failing"]:
            seen = f"{row['failing']} failing, run {row['id']} after {row['tries']} tries: {clean(row['error'] or '')}"
            remedy = "it is tried until it commits: mend it, or give it up with `cleanup ID --discard-callback`"
            yield what, "error" if row["tries"] >= _MANY_TRIES else "warning", f"{told}, {seen}; {remedy}"
        else:
            yield what, "ok", f"{told} under way"


def _kind(row: Row) -> str:
    queue = "" if row["queue"] == "default" else f" in queue {clean(row['queue'])}"
    return f"{clean(row['action'])}{queue}"
