"""The page's plots, as SVG: the same file for the same results, so that a diff shows what has changed."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.figures import percentile
from benchmarks.targets import FIGURES, TARGETS, Entry, values_of

OURS, THEIRS, LINE = "#0b6e4f", "#8a8f98", "#c0392b"
NAMES = {"postgres": "PostgreSQL", "sqlite": "SQLite", "redis": "Redis; ours on PostgreSQL"}

mpl.rcParams.update({
    "svg.hashsalt": "benchmarks",  # ids that do not change
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
})  # fmt: skip


def draw(entries: Mapping[str, Entry], folder: Path) -> dict[str, Path]:
    """Draw what can be drawn of what was measured. Returns the files by name."""
    usable = {name: entry for name, entry in entries.items() if not entry["failed"] and entry["ours"]["samples"]}
    figures: dict[str, Figure] = {}
    if chart := _targets(usable):
        figures["targets"] = chart
    for database in NAMES:
        for family in ("drain", "start", "many", "retry"):
            chosen = _of(usable, family, database)
            if chosen:
                figures[f"{family}-{database}"] = _rates(chosen, chosen[0]["unit"])
        if chosen := _of(usable, "latency", database):
            figures[f"latency-{database}"] = _latencies(chosen)
        if chosen := _of(usable, "held", database):
            figures[f"held-{database}"] = _over_time(chosen[0])
    drawn = {}
    for name, figure in figures.items():
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
        drawn[name] = path
    return drawn


def _of(entries: Mapping[str, Entry], family: str, database: str) -> list[Entry]:
    return [entry for name, entry in entries.items() if name.startswith(f"{family}/{database}/")]


def _sides(entries: list[Entry]) -> dict[str, list[float]]:
    """Return the figures of each side once: ours from the first measurement that has it."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        for which in ("ours", "theirs"):
            found.setdefault(entry[which]["side"], values_of(entry, which))
    return found


def _axes(rows: int, width: float = 7.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, 0.9 + 0.32 * rows))
    return figure, figure.subplots()


def _color(side: str) -> str:
    return OURS if side.startswith("ours") else THEIRS


def _write(axes: Any, text: str, right_of: float, row: int) -> None:
    axes.annotate(text, (right_of, row), xytext=(8, 0), textcoords="offset points", va="center")


def _rates(entries: list[Entry], unit: str) -> Figure:
    sides = sorted(_sides(entries).items(), key=lambda item: statistics.median(item[1]))
    figure, axes = _axes(len(sides))
    for row, (side, values) in enumerate(sides):
        middle = statistics.median(values)
        axes.plot([min(values), max(values)], [row, row], color=_color(side), linewidth=2)
        axes.plot(middle, row, marker="o", color=_color(side), markersize=7)
        _write(axes, f"{middle:,.0f}", max(values), row)
    axes.set_xscale("log")
    axes.set_yticks(range(len(sides)), [side for side, _ in sides])
    axes.set_xlabel(f"{unit}: median, least to most; a logarithmic scale")
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.15)
    return figure


def _latencies(entries: list[Entry]) -> Figure:
    found: dict[str, list[float]] = {}
    for entry in entries:
        for which in ("ours", "theirs"):
            values = [value for sample in entry[which]["samples"] for value in sample["ms"]]
            found.setdefault(entry[which]["side"], values)
    sides = sorted(found.items(), key=lambda item: -percentile(item[1], 50))
    figure, axes = _axes(len(sides))
    for row, (side, values) in enumerate(sides):
        points = [percentile(values, percent) for percent in (50, 95, 99)]
        axes.plot(points, [row] * 3, color=_color(side), linewidth=2)
        for point, marker in zip(points, "o|x", strict=True):
            axes.plot(point, row, marker=marker, color=_color(side), markersize=7)
        _write(axes, f"{points[0]:.1f} / {points[1]:.1f} / {points[2]:.1f}", points[2], row)
    axes.set_xscale("log")
    axes.set_yticks(range(len(sides)), [side for side, _ in sides])
    axes.set_xlabel("ms: p50 (o), p95 (|), p99 (x); a logarithmic scale")
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.25)
    return figure


def _over_time(entry: Entry) -> Figure:
    figure = Figure(figsize=(7.0, 2.6))
    axes = figure.subplots()
    for which, color in (("theirs", THEIRS), ("ours", OURS)):
        axes.plot(values_of(entry, which), color=color, label=entry[which]["label"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("one drain after the other")
    axes.set_ylabel(entry["unit"])
    axes.legend(frameon=False)
    return figure


def _targets(entries: Mapping[str, Entry]) -> Figure | None:
    """Draw each found figure with its interval as a multiple of what was wanted: right of the line is better."""
    rows = []
    for target in TARGETS:
        entry = entries.get(target.measurement)
        if entry is None or not entry["complete"]:
            continue
        found = FIGURES[target.figure](entry)
        bound = target.at_least if target.at_least is not None else target.at_most
        assert bound
        shares = [value / bound for value in (found.median, found.low, found.high)]
        if target.at_least is None:
            shares = [1 / max(share, 0.01) for share in shares]
        rows.append((target.text, shares[0], min(shares), max(shares)))
    if not rows:
        return None
    rows.reverse()
    figure, axes = _axes(len(rows), 6.0)
    for row, (_, middle, low, high) in enumerate(rows):
        color = OURS if middle >= 1 else LINE
        axes.plot([max(low, 0.01), max(high, 0.01)], [row, row], color=color, linewidth=2)
        axes.plot(max(middle, 0.01), row, marker="o", color=color, markersize=5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_yticks(range(len(rows)), [text for text, *_ in rows])
    axes.set_xlabel("found / wanted, inverted where less is better: 1 is the target, right of it is better")
    return figure
