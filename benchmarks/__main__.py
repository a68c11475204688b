"""
``python -m benchmarks``: measure everything in one run and print it, ours beside the floor.

Each figure is taken several times, ours and the floor in turn; the median and the range are printed.
"""

import argparse
import asyncio
import json
import platform
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import floor, ours


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="how often each figure is taken")
    parser.add_argument("--runs", type=int, default=50_000, help="runs to drain")
    parser.add_argument("--concurrency", type=int, default=500, help="of the worker that drains")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    console.print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL; "
        f"{given.repeat} times each"
    )
    found = {"rates": _rates(given, console), "latency_ms": _latencies(given, console)}
    if given.json:
        json.dump(found, sys.stdout, indent=2)


def _rates(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    size = given.concurrency
    measures: dict[str, tuple[Callable[[Path], float], Callable[[Path], float]]] = {
        "single starts": (
            lambda path: asyncio.run(ours.single_starts(path, 2_000)),
            lambda path: floor.single_starts(path, 2_000),
        ),
        "run_many, 1000 at a time": (
            lambda path: asyncio.run(ours.batch_starts(path, given.runs, 1_000)),
            lambda path: floor.batch_starts(path, given.runs, 1_000),
        ),
        f"drain {given.runs:,} no-op runs": (
            lambda path: asyncio.run(ours.drain(path, given.runs, size)),
            lambda path: floor.drain(path, given.runs, size),
        ),
    }
    table = Table(title="per second")
    for column in ("", "ours", "range", "floor", "range", "ours / floor"):
        table.add_column(column, justify="left" if not column else "right")
    found = {}
    for name, (take_ours, take_floor) in measures.items():
        ours_rates, floor_rates = [], []
        for _ in range(given.repeat):
            ours_rates.append(_in_new_directory(take_ours))
            floor_rates.append(_in_new_directory(take_floor))
        ratio = statistics.median(one / other for one, other in zip(ours_rates, floor_rates, strict=True))
        table.add_row(name, *_cells(ours_rates), *_cells(floor_rates), f"{ratio:.2f}")
        found[name] = {"ours": ours_rates, "floor": floor_rates, "ratio": ratio}
    console.print(table)
    return found


def _latencies(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    table = Table(title="from the call of run to the first line of the action, ms, one each 50 ms")
    for column in ("", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if not column else "right")
    found = {}
    for name, across in (("same process", False), ("another process", True)):
        values = []
        for _ in range(given.repeat):
            values += _in_new_directory(lambda path, across=across: asyncio.run(ours.latency(path, 100, across=across)))
        found[name] = ours.percentiles(values)
        table.add_row(name, *(f"{value:.1f}" for value in found[name].values()))
    values = []
    for _ in range(given.repeat):
        values += _in_new_directory(lambda path: floor.latency(path, 100))
    found["floor, another process"] = ours.percentiles(values)
    table.add_row("floor, another process", *(f"{value:.1f}" for value in found["floor, another process"].values()))
    console.print(table)
    return found


def _in_new_directory(take: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        return take(Path(directory) / "bench.db")


def _cells(rates: list[float]) -> tuple[str, str]:
    return f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"


if __name__ == "__main__":
    main()
