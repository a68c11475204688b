"""How each figure is taken: one sample of one side, in a database of its own."""

import contextlib
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.environments import ROOT, interpreter
from benchmarks.figures import percentile
from benchmarks.places import Place, Places, held_transaction
from benchmarks.sides import LOOK_S, FailedError, Side, tallied, wait_until, working

Sample = dict[str, Any]
WARM_UP = 5  # stamped tasks whose latency is not counted
EACH_S = 0.05  # between two starts, where latency is measured idle
TICK_S = 0.02  # between two batches, where it is measured under load
HANGING = 20  # tasks that a worker is killed with


@dataclass(frozen=True)
class Contender:
    """A side, and what it does in a measurement."""

    side: Side
    database: str
    label: str
    kind: str = "noop"
    workers: int = 1
    place: str = "new"  # or history, empty, held, churned: one that is kept from sample to sample
    bare: bool = False  # only the interpreter
    imports: str = ""  # what is imported, if not what its program says


@dataclass
class Settings:
    """How much is measured."""

    is_quick: bool = False
    pairs: int = 20
    budget_s: float = 600
    sample_s: float = 2.0
    latencies: int = 100
    load_s: float = 5.0
    idle_s: float = 30.0
    settle_s: float = 6.0
    recovery_s: float = 120.0
    runs_before_memory: int = 100_000
    history: int = 1_000_000
    held_s: float = 300.0
    repeats: int = 3  # of what is no rate: idle CPU, memory

    @classmethod
    def quick(cls) -> "Settings":
        """Return settings that tell whether everything works, and nothing else."""
        return cls(
            is_quick=True,
            pairs=2,
            budget_s=20,
            sample_s=0.15,
            latencies=10,
            load_s=0.5,
            idle_s=1,
            settle_s=0.5,
            recovery_s=20,
            runs_before_memory=1_000,
            history=10_000,
            held_s=5,
            repeats=1,
        )


@dataclass
class Bench:
    """Where a measurement is made, and what is known already."""

    places: Places
    settings: Settings
    known_rate: Callable[[str, Contender], float | None] = lambda _family, _contender: None
    _kept: dict[str, Place] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @contextlib.contextmanager
    def measurement(self) -> Iterator[None]:
        """Keep what is kept from sample to sample until the end of the block."""
        with contextlib.ExitStack() as self._stack:
            self._kept = {}
            yield

    @contextlib.contextmanager
    def place(self, contender: Contender) -> Iterator[Place]:
        if contender.place == "new":
            with self.places.new(contender.database) as place:
                yield place
            return
        if contender.place not in self._kept:
            self._kept[contender.place] = self._make(contender)
        yield self._kept[contender.place]

    def _make(self, contender: Contender) -> Place:
        # A transaction with an id is seen from all databases of its server: what is compared needs another server.
        server = contender.place if contender.place in {"held", "churned"} else ""
        place = self._stack.enter_context(self.places.new(contender.database, server))
        if contender.place == "history":
            contender.side.ask("history", place.url, self.settings.history)
            place.vacuum()
        elif contender.place == "held":
            contender.side.ask("fill", place.url, 0, "noop")
            self._stack.enter_context(held_transaction(place.url))
        return place


def enqueue(bench: Bench, contender: Contender, size: int) -> Sample:
    """Start one task at a time."""
    with bench.place(contender) as place:
        seconds = contender.side.ask("enqueue", place.url, size)["seconds"]
    return {"rate": size / seconds, "seconds": seconds}


def fill(bench: Bench, contender: Contender, size: int) -> Sample:
    """Start many tasks at a time."""
    with bench.place(contender) as place:
        seconds = contender.side.ask("fill", place.url, size, contender.kind)["seconds"]
    return {"rate": size / seconds, "seconds": seconds}


def drain(bench: Bench, contender: Contender, size: int) -> Sample:
    """Execute what is there, from the first start to the last durable record."""
    with bench.place(contender) as place:
        return _drain(contender, place, size)


def _drain(contender: Contender, place: Place, size: int) -> Sample:
    contender.side.ask("fill", place.url, size, contender.kind)
    if contender.place not in {"held", "churned"}:  # there, what autovacuum manages by itself is what is asked
        place.vacuum()
    with tallied() as tally, working(contender.side, place.url, tally, contender.workers) as workers:
        for worker in workers:
            worker.go()
        executions = size * (2 if contender.kind == "fail_once" else 1)
        wait_until(lambda: tally.executions() >= executions, workers, f"{contender.label}: {size} tasks")
        while True:
            ended_ns = time.monotonic_ns()  # before the question: what it takes to answer is nobody's time
            if not workers[0].left():
                break
            time.sleep(LOOK_S)
        seconds = (ended_ns - tally.first_start_ns()) / 1e9
    return {"rate": size / seconds, "seconds": seconds}


def latency(bench: Bench, contender: Contender, _: int) -> Sample:
    """Start a task each 50 ms; from the call that starts it to its first line, in another process."""
    count = bench.settings.latencies
    with _serving(bench, contender) as (place, tally, workers):
        contender.side.ask("send", place.url, count + WARM_UP, EACH_S, 1)
        wait_until(lambda: tally.stamped() >= count + WARM_UP, workers, f"{contender.label}: {count} latencies")
        found = tally.stamps_ms()[WARM_UP:]
    return {"ms": [round(value, 3) for value in found], **_percentiles(found)}


def half_load(bench: Bench, contender: Contender, _: int) -> Sample:
    """Start batches at half the rate at which this side can start and execute on this machine."""
    start, execute = (_rate(bench, contender, family) for family in ("many", "drain"))
    rate = 0.5 / (1 / start + 1 / execute)
    batch = max(1, round(rate * TICK_S))
    count = max(1, round(bench.settings.load_s * rate / batch)) * batch
    with _serving(bench, contender) as (place, tally, workers):
        contender.side.ask("send", place.url, WARM_UP, EACH_S, 1)
        seconds = contender.side.ask("send", place.url, count, batch / rate, batch)["seconds"]
        wait_until(lambda: tally.stamped() >= count + WARM_UP, workers, f"{contender.label}: {count} under load")
        found = tally.stamps_ms()[WARM_UP:]
    return {"wanted_rate": rate, "rate": count / seconds, "batch": batch, "count": count, **_percentiles(found)}


def _rate(bench: Bench, contender: Contender, family: str) -> float:
    known = bench.known_rate(family, contender)
    if known is None:
        take = {"many": fill, "drain": drain}[family]
        known = take(bench, contender, size_for(bench, contender, take))["rate"]
    return float(known)


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{percent}": round(percentile(values, percent), 3) for percent in (50, 95, 99)}


@contextlib.contextmanager
def _serving(bench: Bench, contender: Contender) -> Iterator[Any]:
    """Have a worker with nothing to do yet."""
    with bench.place(contender) as place:
        contender.side.ask("fill", place.url, 0, "noop")
        with tallied() as tally, working(contender.side, place.url, tally, contender.workers) as workers:
            for worker in workers:
                worker.go()
            time.sleep(min(2.0, bench.settings.settle_s))
            yield place, tally, workers


def idle(bench: Bench, contender: Contender, _: int) -> Sample:
    """Have a worker with nothing to do: CPU of its processes and of the server's, in percent of a core."""
    seconds = bench.settings.idle_s
    with bench.place(contender) as place:
        contender.side.ask("fill", place.url, 0, "noop")
        time.sleep(bench.settings.settle_s)
        alone = _cpu_percent([place.server_pid], seconds / 2)[0]
        with tallied() as tally, working(contender.side, place.url, tally) as workers:
            workers[0].go()
            time.sleep(bench.settings.settle_s)  # past what it does at first, and past a wakefulness after activity
            worker, server = _cpu_percent([workers[0].process.pid, place.server_pid], seconds)
            workers[0].check()
    return {"worker": worker, "server": server, "server_alone": alone}


def _cpu_percent(pids: list[int | None], seconds: float) -> list[float]:
    before = [_cpu_s(pid) for pid in pids]
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    return [(_cpu_s(pid) - used) / passed * 100 for pid, used in zip(pids, before, strict=True)]


def _cpu_s(pid: int | None) -> float:
    """Return the CPU that a process and its children, past ones included, have used."""
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    times = process.cpu_times()
    used = _own_cpu_s(process) + times.children_user + times.children_system
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += _own_cpu_s(child)
    return float(used)


def _own_cpu_s(process: psutil.Process) -> float:
    """Return what a process has used: as the scheduler counts it, in nanoseconds, where it can be asked."""
    times = process.cpu_times()
    used = times.user + times.system  # in hundredths of a second, but of ended threads as well
    precise = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            precise += int((task / "schedstat").read_text().split()[0])
    return float(max(used, precise / 1e9))


def memory(bench: Bench, contender: Contender, _: int) -> Sample:
    """Have a worker execute 100,000 tasks: what its processes then hold, in MB."""
    count = bench.settings.runs_before_memory
    with bench.place(contender) as place:
        contender.side.ask("fill", place.url, count, "noop")
        place.vacuum()
        with tallied() as tally, working(contender.side, place.url, tally) as workers:
            workers[0].go()
            wait_until(lambda: tally.executions() >= count, workers, f"{contender.label}: {count} tasks")
            while workers[0].left():
                time.sleep(LOOK_S)
            process = psutil.Process(workers[0].process.pid)
            held = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
            peak = _peak_kb(process.pid)
    return {"rss_mb": held / 1e6, "peak_mb": peak * 1024 / 1e6, "count": count}


def _peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def import_time(_bench: Bench, contender: Contender, _: int) -> Sample:
    """Import it in a new interpreter, or nothing: CPU and wall clock in milliseconds, the median of five."""
    text = "pass" if contender.bare else contender.imports or contender.side.info["imports"]
    taken = [_run_python(contender.side.library, text) for _ in range(5)]
    return {name: statistics.median(one[name] for one in taken) for name in ("cpu_ms", "wall_ms")}


def _run_python(library: str, text: str) -> Sample:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run([interpreter(library), "-c", text], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_ms": cpu_s * 1000, "wall_ms": wall_s * 1000}


def recovery_by_restart(bench: Bench, contender: Contender, _: int) -> Sample:
    """Kill a worker that executes 20 tasks, start another at once: seconds until it has begun all 20."""
    return _recovery(bench, contender, is_fleet=False)


def recovery_by_fleet(bench: Bench, contender: Contender, _: int) -> Sample:
    """Kill a worker that executes 20 tasks while another is running: seconds until that has begun all 20."""
    return _recovery(bench, contender, is_fleet=True)


def _recovery(bench: Bench, contender: Contender, *, is_fleet: bool) -> Sample:
    side, limit_s = contender.side, bench.settings.recovery_s
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(bench.place(contender))
        tally = stack.enter_context(tallied())
        side.ask("fill", place.url, HANGING, "hang")

        def start() -> Any:
            (worker,) = stack.enter_context(working(side, place.url, tally, threads=HANGING))
            worker.go()
            return worker

        victim = start()
        wait_until(lambda: tally.executions() >= HANGING, [victim], f"{contender.label}: {HANGING} at once", 60)
        if is_fleet:
            start()
            time.sleep(min(3.0, bench.settings.settle_s))
        before = tally.executions()
        victim.kill()
        killed_at = time.monotonic()
        tally.killed.touch()
        if not is_fleet:
            start()
        with contextlib.suppress(FailedError):
            wait_until(lambda: tally.executions_after_kill() >= HANGING, [], "recovery", limit_s)
        seconds = time.monotonic() - killed_at
        recovered = tally.executions_after_kill()
    return {
        "seconds": seconds if recovered >= HANGING else None,
        "recovered": recovered,
        "twice_before": before - HANGING,
        "limit_s": limit_s,
    }


def in_transaction(bench: Bench, contender: Contender, size: int) -> Sample:
    """Add a start, or the raw INSERT, to a user's transaction, in turns: what each adds, in microseconds."""
    with bench.place(contender) as place:
        answer = contender.side.ask("in-transaction", place.url, size)
    return {
        **answer,
        "seconds": answer["bare_us"] * size * 3 / 1e6 + (answer["start_us"] + answer["raw_us"]) * size / 1e6,
    }


def size_for(bench: Bench, contender: Contender, take: Callable[[Bench, Contender, int], Sample]) -> int:
    """Return for how many tasks a sample takes as long as it should, from samples that are thrown away."""
    wanted_s = bench.settings.sample_s
    size = 200
    for _ in range(4):
        seconds = take(bench, replace(contender, place="new"), size)["seconds"]
        size = max(20, min(200_000, round(size * min(30.0, wanted_s / max(seconds, 1e-3)))))
        if seconds >= wanted_s / 3:
            break
    digits = len(str(size)) - 2
    return round(size, -digits) if digits > 0 else size


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
