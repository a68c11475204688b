"""What is wanted, in one table, and how each is judged. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import Spread, percentile, ratios, spread

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One wanted figure of one measurement."""

    text: str
    measurement: str
    figure: str  # a key of FIGURES
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, entries: Mapping[str, Entry]) -> tuple[str, Spread | None]:
        """
        Return a verdict and the figure.

        The median decides. Where its 95 % interval reaches beyond the bound, the verdict says so: the noise is as large
        as the distance.
        """
        entry = entries.get(self.measurement)
        if entry is None or entry["failed"] or not entry["complete"]:
            return "not measured", None
        found = FIGURES[self.figure](entry)
        if self.at_least is not None:
            is_met, worst, best = found.median >= self.at_least, found.low >= self.at_least, found.high >= self.at_least
        else:
            assert self.at_most is not None
            is_met, worst, best = found.median <= self.at_most, found.high <= self.at_most, found.low <= self.at_most
        if is_met:
            return ("met" if worst else "met, within the noise"), found
        return ("missed, within the noise" if best else "missed"), found

    @property
    def bound(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


def values_of(entry: Entry, which: str, figure: str | None = None) -> list[float]:
    """Return a figure of each sample of a side, without those in which it never came to be."""
    found = [sample[figure or entry["figure"]] for sample in entry[which]["samples"]]
    return [value for value in found if value is not None]


def ratio(entry: Entry) -> Spread:
    """Ours as a multiple of theirs, over the pairs."""
    return spread(ratios(values_of(entry, "ours"), values_of(entry, "theirs")))


def ratio_at_the_end(entry: Entry) -> Spread:
    """The same over the last third of the pairs: what it comes to as time goes on."""
    found = ratios(values_of(entry, "ours"), values_of(entry, "theirs"))
    return spread(found[-max(1, len(found) // 3) :])


def pooled(percent: float) -> Callable[[Entry], Spread]:
    """Return a percentile over all latencies of ours; its interval is over the pairs' own percentiles."""

    def found(entry: Entry) -> Spread:
        samples = [sample["ms"] for sample in entry["ours"]["samples"]]
        of_each = spread([percentile(one, percent) for one in samples])
        of_all = percentile([value for one in samples for value in one], percent)
        return Spread(of_all, of_each.low, of_each.high, of_each.least, of_each.most, of_each.count)

    return found


def of_ours(figure: str) -> Callable[[Entry], Spread]:
    return lambda entry: spread(values_of(entry, "ours", figure))


def added_ratio(entry: Entry) -> Spread:
    """What a start adds to a transaction, as a multiple of what the raw INSERT adds."""
    return spread(ratios(values_of(entry, "ours", "start_us"), values_of(entry, "ours", "raw_us")))


def added_beyond_raw(entry: Entry) -> Spread:
    """What a start adds beyond the raw INSERT, in microseconds."""
    pairs = zip(values_of(entry, "ours", "start_us"), values_of(entry, "ours", "raw_us"), strict=True)
    return spread([start - raw for start, raw in pairs])


def server_share(entry: Entry) -> Spread:
    """The server's CPU with an idle worker beyond that without one, in percent of a core."""
    pairs = zip(values_of(entry, "ours", "server"), values_of(entry, "ours", "server_alone"), strict=True)
    return spread([with_worker - alone for with_worker, alone in pairs])


FIGURES: dict[str, Callable[[Entry], Spread]] = {
    "ratio": ratio,
    "ratio at the end": ratio_at_the_end,
    "p50": pooled(50),
    "p99": pooled(99),
    "added ratio": added_ratio,
    "added us": added_beyond_raw,
    "worker": of_ours("worker"),
    "server": server_share,
    "rss_mb": of_ours("rss_mb"),
}

TARGETS = [
    Target("PostgreSQL: drain against PgQueuer", "drain/postgres/pgqueuer", "ratio", at_least=1.25),
    Target("PostgreSQL: drain against Oban for Python", "drain/postgres/oban", "ratio", at_least=4),
    Target("PostgreSQL: drain against Procrastinate", "drain/postgres/procrastinate", "ratio", at_least=15),
    Target("PostgreSQL: drain against DBOS", "drain/postgres/dbos", "ratio", at_least=15),
    Target("PostgreSQL: drain against Absurd", "drain/postgres/absurd", "ratio", at_least=15),
    Target("PostgreSQL: drain against the floor", "drain/postgres/floor", "ratio", at_least=0.6),
    Target("PostgreSQL: with callbacks (read committed), against plain", "callback/postgres/plain", "ratio", at_least=0.35),
    Target("SQLite: drain against huey without fsync", "drain/sqlite/huey", "ratio", at_least=2),
    Target("SQLite: drain against huey with fsync", "drain/sqlite/huey-fsync", "ratio", at_least=7),
    Target("SQLite: drain against DBOS", "drain/sqlite/dbos", "ratio", at_least=80),
    Target("SQLite: drain against the floor", "drain/sqlite/floor", "ratio", at_least=0.3),
    Target("SQLite: with callbacks, against plain", "callback/sqlite/plain", "ratio", at_least=0.5),
    Target("PostgreSQL: single start against a raw INSERT, async", "start/postgres/floor", "ratio", at_least=0.85),
    Target("PostgreSQL: single start against a raw INSERT, sync", "start/postgres/floor-sync", "ratio", at_least=0.85),
    Target("SQLite: single start against a raw INSERT, sync", "start/sqlite/floor-sync", "ratio", at_least=0.85),
    Target("SQLite: single start against a raw INSERT, async", "start/sqlite/floor", "ratio", at_least=0.5),
    Target("PostgreSQL: run_many against a raw batched INSERT", "many/postgres/floor", "ratio", at_least=0.5),
    Target("SQLite: run_many against a raw batched INSERT", "many/sqlite/floor", "ratio", at_least=0.5),
    Target("PostgreSQL: a start in a transaction against its INSERT, async", "in-transaction/postgres/async",
           "added ratio", at_most=1.3),
    Target("PostgreSQL: a start in a transaction against its INSERT, sync", "in-transaction/postgres/sync",
           "added ratio", at_most=1.3),
    Target("SQLite: a start in a transaction beyond its INSERT, us, async", "in-transaction/sqlite/async", "added us",
           at_most=15),
    Target("SQLite: a start in a transaction beyond its INSERT, us, sync", "in-transaction/sqlite/sync", "added us",
           at_most=15),
    Target("PostgreSQL: idle latency, p50 in ms", "latency/postgres/floor", "p50", at_most=1.6),
    Target("PostgreSQL: idle latency, p99 in ms", "latency/postgres/floor", "p99", at_most=4),
    Target("SQLite: idle latency, p50 in ms", "latency/sqlite/floor", "p50", at_most=2),
    *(
        Target(f"{title}: idle latency p50 against {name}", f"latency/{database}/{peer}", "ratio", at_most=1)
        for database, title, peers in (
            ("postgres", "PostgreSQL", ("pgqueuer", "oban", "procrastinate", "dbos", "absurd")),
            ("sqlite", "SQLite", ("huey", "huey-fsync", "dbos")),
            ("redis", "PostgreSQL", ("celery", "dramatiq", "taskiq")),
        )
        for peer in peers
        for name in (f"{peer} on Redis" if database == "redis" else peer,)
    ),
    Target("PostgreSQL: drain beside 1,000,000 completed runs", "history/postgres/empty", "ratio", at_least=0.95),
    Target("SQLite: drain beside 1,000,000 completed runs", "history/sqlite/empty", "ratio", at_least=0.95),
    Target("PostgreSQL: drain, a transaction held open for 5 minutes", "held/postgres/none", "ratio at the end", at_least=0.7),
    Target("PostgreSQL: idle worker, % of a core", "idle/postgres/ours", "worker", at_most=0.4),
    Target("SQLite: idle worker, % of a core", "idle/sqlite/ours", "worker", at_most=0.4),
    Target("PostgreSQL: its share for an idle worker, % of a core", "idle/postgres/ours", "server", at_most=0.2),
    Target("PostgreSQL: worker memory after 100,000 runs, MB", "memory/postgres/ours", "rss_mb", at_most=60),
    Target("SQLite: worker memory after 100,000 runs, MB", "memory/sqlite/ours", "rss_mb", at_most=60),
    Target("PostgreSQL: two workers on two cores against one", "two-workers/postgres/ours-one", "ratio", at_least=1.2),
]  # fmt: skip
