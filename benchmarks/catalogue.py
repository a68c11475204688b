"""All that can be measured: one name, two sides. Names are ``FAMILY/DATABASE/AGAINST``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks import measures
from benchmarks.measures import Bench, Contender, Sample
from benchmarks.sides import Side


@dataclass(frozen=True)
class Family:
    """A kind of measurement."""

    name: str
    title: str
    unit: str
    figure: str  # of a sample, the one that is compared
    take: Callable[[Bench, Contender, int], Sample]
    more_is_better: bool = True
    is_sized: bool = False  # samples have a size, which is found out first
    size: int = 0  # or they have this one: where waits would mislead whoever found it out
    pairs: str = "pairs"  # or repeats, once, timed: how many are taken


FAMILIES = {
    family.name: family
    for family in (
        Family("start", "Single starts, a commit each", "starts/s", "rate", measures.enqueue, is_sized=True),
        Family("many", "Starts in batches of 1,000", "starts/s", "rate", measures.fill, is_sized=True),
        Family("drain", "Drain of no-op runs by one worker process", "runs/s", "rate", measures.drain, is_sized=True),
        Family("two-workers", "Two worker processes against one", "runs/s", "rate", measures.drain, is_sized=True),
        Family("callback", "Each run has a callback that inserts a row", "runs/s", "rate", measures.drain, is_sized=True),
        Family("retry", "Each run fails once, then succeeds", "runs/s", "rate", measures.drain, size=5_000),
        Family(
            "in-transaction", "A start in the user's own transaction", "us added", "start_us", measures.in_transaction,
            more_is_better=False, is_sized=True,
        ),
        Family("latency", "Start to first line, idle, another process", "ms", "p50", measures.latency, more_is_better=False),
        Family("half-load", "Start to first line at half load", "ms", "p50", measures.half_load, more_is_better=False,
               pairs="repeats"),
        Family("history", "Drain beside 1,000,000 completed runs", "runs/s", "rate", measures.drain, is_sized=True),
        Family("held", "Drain under churn, a transaction held open", "runs/s", "rate", measures.drain, is_sized=True,
               pairs="timed"),
        Family("restart", "20 tasks killed with their worker, which is restarted", "s", "seconds",
               measures.recovery_by_restart, more_is_better=False, pairs="once"),
        Family("fleet", "20 tasks killed with their worker, beside another", "s", "seconds",
               measures.recovery_by_fleet, more_is_better=False, pairs="once"),
        Family("idle", "CPU of an idle worker", "% of a core", "worker", measures.idle, more_is_better=False, pairs="repeats"),
        Family("memory", "Memory of a worker after 100,000 runs", "MB", "rss_mb", measures.memory, more_is_better=False,
               pairs="once"),
        Family("import", "Import, beyond the bare interpreter", "ms of CPU", "cpu_ms", measures.import_time,
               more_is_better=False),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Two contenders in one family, of which samples are taken in turns. Only one, where nothing is compared."""

    name: str
    family: Family
    ours: Contender
    theirs: Contender | None


OURS = Side("ours", "ours")
OURS_SYNC = Side("ours, sync", "ours", "sync")
FLOOR = Side("floor", "floor")
PEERS = {
    "postgres": [Side(name, name) for name in ("pgqueuer", "oban", "procrastinate", "dbos", "absurd")],
    "sqlite": [Side("huey", "huey"), Side("huey fsync", "huey", "fsync"), Side("dbos", "dbos")],
    "redis": [Side(name, name) for name in ("celery", "dramatiq", "taskiq")],
}
WITH_BATCHES = {"pgqueuer", "oban", "procrastinate", "dbos", "absurd"}  # or a transaction for many
IN_TWO = {"pgqueuer", "oban"}  # whose second worker process is looked at as well, beside ours


def catalogue() -> list[Measurement]:
    """Return all of them, those with targets first."""
    found = [*_ours(), *_against_peers()]
    names = [measurement.name for measurement in found]
    assert len(names) == len(set(names))
    return found


def _ours() -> Iterator[Measurement]:
    for database in ("postgres", "sqlite"):
        ours = Contender(OURS, database, "ours")
        sync = Contender(OURS_SYNC, database, "ours, sync")
        floor = Contender(FLOOR, database, "floor")
        yield _of("drain", floor, ours)
        yield _of("start", floor, ours)
        yield _of("start", floor, sync, "floor-sync")
        yield _of("many", floor, ours)
        read_committed = replace(ours, kind="callback", label="ours, with callbacks")
        yield _of("callback", ours, read_committed, "plain")
        if database == "postgres":
            serializable = replace(ours, kind="callback_serializable", label="ours, with serializable callbacks")
            yield _of("callback", ours, serializable, "plain-serializable")
        for name, one in (("async", ours), ("sync", sync)):
            yield Measurement(f"in-transaction/{database}/{name}", FAMILIES["in-transaction"], one, None)
        yield _of("latency", floor, ours)
        for side in (OURS, FLOOR, *(peer for peer in PEERS[database] if peer.name in IN_TWO)):
            one = Contender(side, database, f"{side.name}, one")
            yield _of("two-workers", one, replace(one, workers=2, label=f"{side.name}, two"), f"{side.name}-one")
        empty = replace(ours, place="new", label="ours, empty")
        yield _of("history", empty, replace(ours, place="history", label="ours, full"), "empty")
        churned = replace(ours, place="churned", label="ours, none held")
        yield _of("held", churned, replace(ours, place="held", label="ours, one held"), "none")
        imports = f"import action_retrier, action_retrier.drivers.{database}"  # what an App with such a URL imports
        bare = replace(ours, bare=True, label="bare")
        yield Measurement(f"import/{database}/ours", FAMILIES["import"], replace(ours, imports=imports), bare)


def _against_peers() -> Iterator[Measurement]:
    for database, peers in PEERS.items():
        # Redis is a server, too: there, ours is on PostgreSQL.
        ours = Contender(OURS, "postgres" if database == "redis" else database, "ours")
        for side in peers:
            peer = Contender(side, database, side.name)
            yield _of("drain", peer, ours)
            yield _of("latency", peer, ours)
            yield _of("start", peer, ours)
            if side.library in WITH_BATCHES:
                yield _of("many", peer, ours)
            failing = replace(ours, kind="fail_once")
            yield _of("retry", replace(peer, kind="fail_once"), failing)
    for family in ("half-load", "idle", "restart", "fleet", "memory"):
        for database, peers in PEERS.items():
            if database != "redis":
                yield Measurement(
                    f"{family}/{database}/ours", FAMILIES[family], Contender(OURS, database, "ours"), None
                )
            for side in peers:
                peer = Contender(side, database, side.name)
                yield Measurement(f"{family}/{database}/{_slug(side)}", FAMILIES[family], peer, None)
    for database, peers in PEERS.items():
        for side in peers:
            peer = Contender(side, database, side.name)
            bare = replace(peer, bare=True, label="bare")
            yield Measurement(f"import/{database}/{_slug(side)}", FAMILIES["import"], peer, bare)


def _of(family: str, theirs: Contender, ours: Contender, against: str = "") -> Measurement:
    return Measurement(
        f"{family}/{theirs.database}/{against or _slug(theirs.side)}", FAMILIES[family], ours=ours, theirs=theirs
    )


def _slug(side: Side) -> str:
    return side.name.replace(", ", "-").replace(" ", "-")
