"""
``python -m benchmarks``: measure everything in one run and print it, ours beside the floor.

Each figure is taken several times, ours and the floor in turn; the median and the range are printed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import floor_postgres, floor_sqlite, ours
from tests.support.postgres_server import VERSION, running_server

Place = Callable[[], contextlib.AbstractContextManager[str]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite", help="what to measure on")
    parser.add_argument("--repeat", type=int, default=3, help="how often each figure is taken")
    parser.add_argument("--runs", type=int, default=50_000, help="runs to drain")
    parser.add_argument("--concurrency", type=int, default=500, help="of the worker that drains")
    parser.add_argument("--idle", type=float, default=20, help="seconds to watch an idle worker")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    with contextlib.ExitStack() as stack:
        if given.database == "sqlite":
            floor, place, server_pid = floor_sqlite, _new_file, None
            what = f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL"
        else:
            server = stack.enter_context(running_server(fsync="on"))
            floor, server_pid = floor_postgres, server.pid
            place = lambda: _new_schema(server.url)  # noqa: E731
            what = f"PostgreSQL {VERSION}, fsync on"
        console.print(f"Python {platform.python_version()}, {what}; {given.repeat} times each, {os.cpu_count()} cores")
        found = {
            "rates": _rates(given, console, floor, place),
            "workers": _workers(given, console, place),
            "latency_ms": _latencies(given, console, floor, place),
            "idle_percent_of_a_core": _idle(given, console, place, server_pid),
        }
    if given.json:
        json.dump(found, sys.stdout, indent=2)


@contextlib.contextmanager
def _new_file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield f"sqlite:///{Path(directory) / 'bench.db'}"


@contextlib.contextmanager
def _new_schema(url: str) -> Iterator[str]:
    yield f"{url}?schema=bench_{secrets.token_hex(4)}"


def _rates(given: argparse.Namespace, console: Console, floor: ModuleType, place: Place) -> dict[str, Any]:
    size = given.concurrency
    measures: dict[str, tuple[Callable[[str], float], Callable[[str], float]]] = {
        "single starts": (
            lambda url: asyncio.run(ours.single_starts(url, 2_000)),
            lambda url: floor.single_starts(url, 2_000),
        ),
        "run_many, 1000 at a time": (
            lambda url: asyncio.run(ours.batch_starts(url, given.runs, 1_000)),
            lambda url: floor.batch_starts(url, given.runs, 1_000),
        ),
        f"drain {given.runs:,} no-op runs": (
            lambda url: asyncio.run(ours.drain(url, given.runs, size)),
            lambda url: floor.drain(url, given.runs, size),
        ),
    }
    table = Table(title="per second")
    for column in ("", "ours", "range", "floor", "range", "ours / floor"):
        table.add_column(column, justify="left" if not column else "right")
    found = {}
    for name, (take_ours, take_floor) in measures.items():
        ours_rates, floor_rates = [], []
        for _ in range(given.repeat):
            ours_rates.append(_taken(place, take_ours))
            floor_rates.append(_taken(place, take_floor))
        ratio = statistics.median(one / other for one, other in zip(ours_rates, floor_rates, strict=True))
        table.add_row(name, *_cells(ours_rates), *_cells(floor_rates), f"{ratio:.2f}")
        found[name] = {"ours": ours_rates, "floor": floor_rates, "ratio": ratio}
    console.print(table)
    return found


def _workers(given: argparse.Namespace, console: Console, place: Place) -> dict[str, Any]:
    """One worker process and two, on the cores that they share with the database."""
    found: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(given.repeat):
        for name, count in (("one", 1), ("two", 2)):
            found[name].append(
                _taken(place, lambda url, count=count: asyncio.run(ours.drain_by(url, given.runs, count)))
            )
    table = Table(title=f"drain {given.runs:,} no-op runs by worker processes, per second")
    for column in ("workers", "", "range"):
        table.add_column(column, justify="left" if column == "workers" else "right")
    for name, rates in found.items():
        table.add_row(name, *_cells(rates))
    console.print(table)
    return found


def _latencies(given: argparse.Namespace, console: Console, floor: ModuleType, place: Place) -> dict[str, Any]:
    table = Table(title="from the call of run to the first line of the action, ms, one each 50 ms")
    for column in ("", "p50", "p95", "p99"):
        table.add_column(column, justify="left" if not column else "right")
    measures: dict[str, Callable[[str], list[float]]] = {
        "same process": lambda url: asyncio.run(ours.latency(url, 100, across=False)),
        "another process": lambda url: asyncio.run(ours.latency(url, 100, across=True)),
        "floor, another process": lambda url: floor.latency(url, 100),
    }
    found = {}
    for name, take in measures.items():
        values = [value for _ in range(given.repeat) for value in _taken(place, take)]
        found[name] = ours.percentiles(values)
        table.add_row(name, *(f"{value:.1f}" for value in found[name].values()))
    console.print(table)
    return found


def _idle(given: argparse.Namespace, console: Console, place: Place, server_pid: int | None) -> dict[str, float]:
    """The CPU that a worker with nothing to do costs, and the database's share."""
    before = _cpu_s(server_pid)
    began = time.perf_counter()
    with place() as url:
        found = {"worker": asyncio.run(ours.idle(url, given.idle))}
    if server_pid is not None:
        found["PostgreSQL"] = (_cpu_s(server_pid) - before) / (time.perf_counter() - began) * 100
    table = Table(title=f"an idle worker, percent of a core over {given.idle:g} s")
    for name in ("", "percent"):
        table.add_column(name, justify="left" if not name else "right")
    for name, percent in found.items():
        table.add_row(name, f"{percent:.2f}")
    console.print(table)
    return found


def _cpu_s(pid: int | None) -> float:
    """Return the CPU that a process and its children, past ones included, have used."""
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    times = process.cpu_times()
    used = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            theirs = child.cpu_times()
            used += theirs.user + theirs.system
    return float(used)


def _taken(place: Place, take: Callable[[str], Any]) -> Any:
    with place() as url:
        return take(url)


def _cells(rates: list[float]) -> tuple[str, str]:
    return f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"


if __name__ == "__main__":
    main()
