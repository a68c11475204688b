"""
Live many histories, on all cores: ``make simulation SEEDS=10000``; or one again, with all that happens: ``SEED=123``.

A failing seed is printed with what it broke. It gives the same history wherever it is lived again.
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .store import Store
from .world import History, simulate, simulated_threads

_CHUNK = 20
_MEMORY = Path("/dev/shm")  # noqa: S108 - whatever is lost with the machine there was temporary


@contextlib.contextmanager
def simulator() -> Iterator[Store]:
    """Have what histories are lived in: a database in memory, and simulated threads."""
    folder = str(_MEMORY) if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="action-retrier-", dir=folder) as name, simulated_threads():
        store = Store(Path(name))
        was_enabled = gc.isenabled()
        gc.disable()  # what is thrown out of dead coroutines is so between two histories, not within one
        try:
            yield store
        finally:
            if was_enabled:
                gc.enable()
            store.close()


def live(seeds: Sequence[int]) -> list[History]:
    """Live some histories."""
    histories = []
    with simulator() as store:
        for seed in seeds:
            histories.append(simulate(seed, store))
            if len(histories) % _CHUNK == 0:
                gc.collect()
    return histories


def how_to_replay(history: History) -> str:
    """Return what people do with a history that broke something."""
    return f"seed {history.seed}: {history.violation}\n    SEED={history.seed} make simulation"


def replay(seed: int) -> int:
    """Live one again and tell everything."""
    with simulator() as store:
        history = simulate(seed, store, told=True)
    print("\n".join(history.trace))
    print(f"digest {history.digest:08x}; {history.steps} steps; {history.virtual_s:.1f} s; {dict(history.injected)}")
    if history.violation:
        print(f"seed {seed}: {history.violation}")
    return 1 if history.violation else 0


def explore(seeds: range, jobs: int) -> int:
    """Live them all, and say what was found."""
    began_s = told_s = time.monotonic()
    chunks = [seeds[first : first + _CHUNK] for first in range(0, len(seeds), _CHUNK)]
    injected: Counter[str] = Counter()
    done = steps = commits = 0
    virtual_s = 0.0
    broken: list[History] = []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for histories in pool.imap_unordered(live, chunks):
            for history in histories:
                done += 1
                steps += history.steps
                commits += history.commits
                virtual_s += history.virtual_s
                injected += history.injected
                if history.violation:
                    broken.append(history)
                    print(how_to_replay(history), flush=True)
            if time.monotonic() - told_s > 10:
                told_s = time.monotonic()
                print(f"{done} of {len(seeds)}, {done / (told_s - began_s):.1f}/s, {len(broken)} broken", flush=True)
    took_s = time.monotonic() - began_s
    print(f"{done} seeds in {took_s:.0f} s ({done / took_s:.1f}/s on {jobs} processes), {len(broken)} broke something")
    print(f"{virtual_s / 3600:.1f} hours of virtual time, {steps} steps, {commits} commits that were checked")
    for what, count in injected.most_common():
        print(f"  {count:7d} {what}")
    return 1 if broken else 0


def main() -> int:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first one (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once (%(default)s)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="live this one alone, and print everything")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    return explore(range(options.first, options.first + options.seeds), options.jobs)
