"""The page: everything that was measured, and nothing else. What people have to say about it is in ``words``."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.catalogue import FAMILIES
from benchmarks.environments import ROOT
from benchmarks.figures import RESAMPLES, SEED, percentile
from benchmarks.results import Results
from benchmarks.targets import TARGETS, Entry, ratio, values_of

WORDS = ROOT / "benchmarks" / "words"
DATABASES = {"postgres": "PostgreSQL", "sqlite": "SQLite", "redis": "Redis; ours on PostgreSQL"}

# What is shown of a sample, where sides are not compared in pairs: its key, and the head of its column.
COLUMNS: dict[str, list[tuple[str, str]]] = {
    "in-transaction": [
        ("bare_us", "the transaction without, µs"),
        ("raw_us", "the raw INSERT adds, µs"),
        ("start_us", "a start adds, µs"),
    ],
    "half-load": [
        ("wanted_rate", "load, runs/s"),
        ("rate", "sent, runs/s"),
        ("p50", "p50, ms"),
        ("p95", "p95, ms"),
        ("p99", "p99, ms"),
    ],
    "idle": [("worker", "worker, %"), ("server", "server, %"), ("server_alone", "server without a worker, %")],
    "memory": [("rss_mb", "MB"), ("peak_mb", "at its peak, MB"), ("count", "after runs")],
    "restart": [("seconds", "all begun again after, s"), ("recovered", "begun again"), ("twice_before", "begun twice before the kill")],
    "fleet": [("seconds", "all begun again after, s"), ("recovered", "begun again"), ("twice_before", "begun twice before the kill")],
}  # fmt: skip

NOTES = {
    "latency": "Milliseconds from the call that starts a run to the action's first line in another process that has nothing "
    "else to do; one start each 50 ms, over all pairs. The ratio is that of the pairs' medians; less is better.",
    "half-load": "The load is half of what a side's own rates for starts in batches and for the drain allow together.",
    "held": "In both, one drain after the other into the same tables, on a server each; in one of them a transaction stays open "
    "all the time. The ratio at the end is that of the last third of the pairs.",
    "history": "The full table has its completed runs before the first pair, and each pair adds its own.",
    "in-transaction": "Transactions of a user's that insert a row: with nothing else, with a start, and with the bare INSERT of "
    "that start's row, in turns in one process; commit included.",
    "restart": "Default settings. The time counts from the kill, the new process's start included.",
    "fleet": "Default settings. A second worker was running when the first was killed.",
    "idle": "Percent of a core; the server's share with the worker and without one.",
    "import": "CPU of a new interpreter that imports it, and of one that imports nothing.",
    "callback": "The callback's row commits together with the run's outcome. Less than 1 is what the callback costs.",
}


def write(results: Results, page: Path) -> list[Path]:
    """Write the page and, in a folder of its name, its plots. Returns what was written."""
    from benchmarks import plots  # noqa: PLC0415 - matplotlib is only needed here

    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results.entries, folder)
    words = {path.stem: path.read_text("utf-8").strip() for path in WORDS.glob("*.md")}
    page.write_text(
        render(results.entries, words, {name: f"{folder.name}/{path.name}" for name, path in drawn.items()})
    )
    return [page, *drawn.values()]


def render(entries: Mapping[str, Entry], words: Mapping[str, str], plots: Mapping[str, str]) -> str:
    """
    Return the page.

    Args:
        entries: What was measured, by name.
        words: What people have written, by the names of its places: introduction, missed, two-workers, fairness.
        plots: The paths of its plots, by name: of a family, ``FAMILY-DATABASE``, or ``targets``.
    """
    measured = [entry for entry in entries.values() if entry["ours"] and entry["ours"]["samples"]]
    parts = [
        "<!-- Written by `python -m benchmarks report`: change benchmarks/words, or measure again, not this file. -->",
        "# Performance",
        words.get("introduction", ""),
        *_warnings(measured),
        *_machine(measured),
        *_targets(entries, plots),
        _with_title("## What was missed, and why", words.get("missed", "")),
    ]
    order = list(FAMILIES)
    for family, group in groupby(
        sorted(measured, key=lambda one: order.index(one["family"])), lambda one: one["family"]
    ):
        parts += _family(family, list(group), plots)
        if family == "two-workers":
            parts.append(words.get("two-workers", ""))
    parts += [*_libraries(measured), words.get("fairness", ""), *_noise(measured), *_not_measured(entries)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _with_title(title: str, text: str) -> str:
    return f"{title}\n\n{text}" if text else ""


def _warnings(measured: Sequence[Entry]) -> list[str]:
    found = []
    if any(entry["quick"] for entry in measured):
        found.append("> **Figures of a quick run are among these: they say that the suite works, and nothing else.**")
    if any(not entry["complete"] for entry in measured):
        cut = ", ".join(entry["name"] for entry in measured if not entry["complete"])
        found.append(f"> Stopped before all pairs were taken: {cut}.")
    if len({entry["source"] for entry in measured}) > 1:
        commits = ", ".join(sorted({entry["commit"] for entry in measured}))
        found.append(f"> Not all of these were measured of the same code: commits {commits}.")
    return found


def _machine(measured: Sequence[Entry]) -> list[str]:
    facts: dict[str, set[str]] = {}
    for entry in measured:
        for name, value in entry["machine"].items():
            if value is not None:
                facts.setdefault(name, set()).add(str(value))
    names = {
        "cpu": "CPU",
        "cores": "cores",
        "memory_gb": "memory, GB",
        "kernel": "kernel",
        "system": "system",
        "filesystem": "file system of the databases",
        "fsync_us": "writing 4 KiB and fsync, median, µs",
        "load_before": "load average before",
        "python": "Python of ours and the floor",
        "sqlite": "SQLite",
        "postgres": "PostgreSQL",
        "redis": "Redis",
    }
    rows = [[names[name], _some(facts[name])] for name in names if name in facts]
    days = sorted({entry["measured_at"][:10] for entry in measured})
    rows.append(["measured", " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "never"])
    rows.append(["commit", _some({entry["commit"] for entry in measured})])
    return ["## The machine", _table(["", ""], rows)]


def _some(values: set[str]) -> str:
    """Name them all, or their range where they are many numbers."""
    try:
        numbers = sorted(float(value) for value in values)
    except ValueError:
        return ", ".join(sorted(values))
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"


def _targets(entries: Mapping[str, Entry], plots: Mapping[str, str]) -> list[str]:
    rows, counts = [], dict.fromkeys(("met", "missed", "not measured"), 0)
    for target in TARGETS:
        verdict, found = target.judge(entries)
        counts[verdict.partition(",")[0]] += 1
        figure = f"{_number(found.median)} ({_number(found.low)} to {_number(found.high)})" if found else ""
        rows.append([target.text, target.bound, figure, f"**{verdict}**" if verdict.startswith("missed") else verdict])
    summary = f"Of {len(TARGETS)} targets, {counts['met']} are met, {counts['missed']} are missed, {counts['not measured']} were not measured."
    head = ["target", "wanted", "found: median (95 % interval)", "verdict"]
    return ["## Targets", summary, *_plot(plots, "targets"), _table(head, rows, "lrrl")]


def _family(family: str, entries: Sequence[Entry], plots: Mapping[str, str]) -> list[str]:
    parts = [f"## {FAMILIES[family].title}", NOTES.get(family, "")]
    by_database = sorted(entries, key=lambda entry: list(DATABASES).index(entry["name"].split("/")[1]))
    for database, group in groupby(by_database, lambda entry: entry["name"].split("/")[1]):
        parts += [f"### {DATABASES[database]}", *_plot(plots, f"{family}-{database}"), _figures(family, list(group))]
    return parts


def _figures(family: str, entries: Sequence[Entry]) -> str:
    if family in COLUMNS:
        columns = COLUMNS[family]
        rows = [
            [
                entry["ours"]["label"],
                *(_of_samples(entry, key) for key, _ in columns),
                str(len(entry["ours"]["samples"])),
            ]
            for entry in entries
        ]
        return _table(["", *(head for _, head in columns), "samples"], rows)
    if family == "import":
        rows = [
            [
                entry["ours"]["label"],
                *(
                    _number(statistics.median(values))
                    for values in (*_imports(entry), [a - b for a, b in zip(*_imports(entry), strict=False)])
                ),
            ]
            for entry in entries
        ]
        return _table(["", "with it, ms", "bare, ms", "more, ms"], rows)
    if family == "latency":
        rows = [
            [_against(entry), *_percentiles(entry, "ours"), *_percentiles(entry, "theirs"), *_ratio(entry)]
            for entry in entries
        ]
        head = [f"{who} {which}" for who in ("ours", "theirs") for which in ("p50", "p95", "p99")]
        return _table(["against", *head, "ratio (95 % interval)", "pairs"], rows)
    rows = [
        [entry["ours"]["label"], _spread(entry, "ours"), _against(entry), _spread(entry, "theirs"), *_ratio(entry)]
        for entry in entries
    ]
    unit = entries[0]["unit"]
    return _table(
        ["", f"{unit}: median (least to most)", "against", unit, "ratio (95 % interval)", "pairs"], rows, "lrlrrr"
    )


def _imports(entry: Entry) -> tuple[list[float], list[float]]:
    return values_of(entry, "ours"), values_of(entry, "theirs")


def _against(entry: Entry) -> str:
    return str(entry["theirs"]["label"])


def _spread(entry: Entry, which: str) -> str:
    values = values_of(entry, which)
    return (
        f"{_number(statistics.median(values))} ({_number(min(values))} to {_number(max(values))})"
        if values
        else "never"
    )


def _of_samples(entry: Entry, key: str) -> str:
    values = values_of(entry, "ours", key)
    if len(values) > 1:
        return f"{_number(statistics.median(values))} ({_number(min(values))} to {_number(max(values))})"
    return _number(values[0]) if values else f"not within {entry['ours']['samples'][0]['limit_s']:g} s"


def _percentiles(entry: Entry, which: str) -> list[str]:
    values = [value for sample in entry[which]["samples"] for value in sample["ms"]]
    return [_number(percentile(values, percent)) for percent in (50, 95, 99)]


def _ratio(entry: Entry) -> list[str]:
    found = ratio(entry)
    return [f"{_number(found.median)} ({_number(found.low)} to {_number(found.high)})", str(found.count)]


def _libraries(measured: Sequence[Entry]) -> list[str]:
    known: dict[str, Mapping[str, Any]] = {}
    for entry in measured:
        for which in ("ours", "theirs"):
            if one := entry[which]:
                known.setdefault(one["side"], one["about"])
    rows = []
    for side, about in known.items():
        versions = [f"{about['library']} {about['version']}".strip(), *(f"{n} {v}" for n, v in about["brings"].items())]
        settings = "; ".join(f"{name}: {value}" for name, value in about["settings"].items())
        rows.append([side, ", ".join(filter(None, versions)), about["python"], settings, about["lacks"]])
    head = ["", "version", "Python", "settings", "what it does not promise, or do"]
    return ["## What was compared, and how", _table(head, rows, "lllll")]


def _noise(measured: Sequence[Entry]) -> list[str]:
    if not measured:
        return []
    widths = [
        (max(values) - min(values)) / statistics.median(values) * 100
        for entry in measured
        if entry["theirs"] and len(values := values_of(entry, "ours")) > 2
    ]
    text = (
        "The two sides of a ratio are measured in turns, a pair after the other, each sample in a new database; the ratio is the "
        f"median over the pairs, its interval the bootstrap's for the median (95 %, {RESAMPLES:,} resamples, seed {SEED}). "
        "A size is found for each side first, so that a sample takes about as long as the other's; those samples are thrown away."
    )
    if widths:
        text += (
            f" Between the least and the most of ours within one measurement lie {statistics.median(widths):.0f} % of its median, in "
            f"the median over the measurements, and {max(widths):.0f} % in the noisiest."
        )
    return ["## The noise", text]


def _not_measured(entries: Mapping[str, Entry]) -> list[str]:
    failed = [f"- `{entry['name']}`: {entry['failed']}" for entry in entries.values() if entry["failed"]]
    return ["## What could not be measured here", "\n".join(failed)] if failed else []


def _plot(plots: Mapping[str, str], name: str) -> list[str]:
    return [f"![{name}]({plots[name]})"] if name in plots else []


def _number(value: float) -> str:
    """Write a number with three digits that count, and no more than are there; a count as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    kinds = {"l": "---", "r": "---:"}
    marks = [kinds[kind] for kind in (align or "l" + "r" * (len(head) - 1))]
    lines = [head, marks, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
