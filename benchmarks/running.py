"""Take a measurement: its sides in turns, saved after each pair, so that whatever stops it loses nothing."""

import contextlib
import sqlite3
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psutil
import psycopg

from benchmarks.catalogue import Measurement
from benchmarks.environments import UnavailableError
from benchmarks.figures import ratios, spread
from benchmarks.measures import Bench, Contender, size_for
from benchmarks.results import Entry, Results
from benchmarks.sides import FailedError

Say = Callable[[str], None]
FAILURES = (
    FailedError,
    UnavailableError,
    OSError,
    subprocess.SubprocessError,
    psycopg.Error,
    sqlite3.Error,
    psutil.Error,
)


def run(measurement: Measurement, bench: Bench, results: Results, about: dict[str, Any], say: Say) -> Entry:
    """
    Measure, and save.

    Args:
        measurement: What.
        bench: Where.
        results: Where it is kept.
        about: What goes into the entry as it is: the machine, the source, whether it is a quick one.
        say: Told after each pair.
    """
    began = time.monotonic()
    contenders = {"ours": measurement.ours, "theirs": measurement.theirs}
    entry: Entry = {
        "name": measurement.name,
        "family": measurement.family.name,
        "unit": measurement.family.unit,
        "figure": measurement.family.figure,
        "more_is_better": measurement.family.more_is_better,
        "complete": False,
        "failed": None,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        **about,
        "ours": None,
        "theirs": None,
    }
    try:
        with bench.measurement():
            for which, contender in contenders.items():
                entry[which] = contender and _described(contender, measurement, bench)
            wanted, budget_s = _how_many(measurement, bench)
            taking = time.monotonic()
            while True:
                for which, contender in contenders.items():
                    if contender is not None:
                        sample = measurement.family.take(bench, contender, entry[which]["size"])
                        entry[which]["samples"].append(sample)
                entry["seconds"] = round(time.monotonic() - began, 1)
                taken, passed_s = len(entry["ours"]["samples"]), time.monotonic() - taking
                # One more pair must fit as well.
                entry["complete"] = taken >= wanted or passed_s * (taken + 1) / taken > budget_s
                results.save(entry)
                say(in_short(entry))
                if entry["complete"]:
                    return entry
    except FAILURES as error:  # of one: the others are measured all the same
        entry["failed"] = " ".join(str(error).split()) or type(error).__name__
        for which in ("ours", "theirs"):
            if entry[which] and not entry[which]["samples"]:
                entry[which] = None
        entry["seconds"] = round(time.monotonic() - began, 1)
        results.save(entry)
    return entry


def _described(contender: Contender, measurement: Measurement, bench: Bench) -> dict[str, Any]:
    size = measurement.family.size // (10 if bench.settings.is_quick else 1)
    if measurement.family.is_sized:
        size = size_for(bench, contender, measurement.family.take)
    return {
        "label": contender.label,
        "side": contender.side.name,
        "database": contender.database,
        "kind": contender.kind,
        "workers": contender.workers,
        "about": contender.side.info,
        "size": size,
        "samples": [],
    }


def _how_many(measurement: Measurement, bench: Bench) -> tuple[int, float]:
    settings = bench.settings
    return {
        "pairs": (settings.pairs, settings.budget_s),
        "repeats": (settings.repeats, settings.budget_s),
        "once": (1, settings.budget_s),
        "timed": (10_000, settings.held_s),
    }[measurement.family.pairs]


def in_short(entry: Entry) -> str:
    """Say in one line what has been found so far."""
    if entry["failed"]:
        return f"not measured: {entry['failed']}"
    figures = {}
    for which in ("ours", "theirs"):
        if entry[which]:
            values = [sample[entry["figure"]] for sample in entry[which]["samples"]]
            figures[which] = [value for value in values if value is not None]
    parts = []
    for which, values in figures.items():
        found = f"{spread(values).median:,.4g} {entry['unit']}" if values else "not in time"
        parts.append(f"{entry[which]['label']} {found}")
    with contextlib.suppress(KeyError, AssertionError):
        parts.append(f"ratio {spread(ratios(figures['ours'], figures['theirs']))}")
    return f"{', '.join(parts)}; {len(entry['ours']['samples'])} taken, {entry['seconds']:.0f} s"
