"""
Live many histories, on all cores: ``make simulation SEEDS=10000``; or one again, with all that happens: ``SEED=123``.

One or the other. A failing seed is printed with what it broke. It gives the same history wherever it is lived again.
"""

import argparse
import contextlib
import functools
import gc
import multiprocessing
import multiprocessing.pool
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from .store import Store
from .world import History, simulate, simulated_threads

_CHUNK = 20
_MEMORY = Path("/dev/shm")  # noqa: S108 - whatever is lost with the machine there was temporary


_INTERRUPTED = 130


def _folder(within: str | None = None) -> tempfile.TemporaryDirectory[str]:
    memory = str(_MEMORY) if _MEMORY.is_dir() else None
    return tempfile.TemporaryDirectory(prefix="action-retrier-", dir=within or memory)


@contextlib.contextmanager
def simulator(within: str | None = None) -> Iterator[Store]:
    """Have what histories are lived in: a database in memory, or *within* a folder, and simulated threads."""
    with _folder(within) as name, simulated_threads():
        store = Store(Path(name))
        was_enabled = gc.isenabled()
        gc.disable()  # what is thrown out of dead coroutines is so between two histories, not within one
        try:
            yield store
        finally:
            if was_enabled:
                gc.enable()
            store.close()


def live(seeds: Sequence[int], within: str | None = None) -> list[History]:
    """Live some histories."""
    histories = []
    with simulator(within) as store:
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
    print(f"seed {seed}: {history.violation or 'every promise held'}")
    return 1 if history.violation else 0


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[tuple[multiprocessing.pool.Pool, str]]:
    """
    Yield processes, and a folder for what they live in.

    Only we are interrupted: they are ended by us, whenever that may be, and the folder is removed.
    """
    context = multiprocessing.get_context("spawn")
    with _folder() as folder:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
        try:
            pool = context.Pool(jobs, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        finally:
            signal.signal(signal.SIGINT, before)
        with pool:
            yield pool, folder


def explore(seeds: range, jobs: int) -> int:
    """Live them all, and say what was found."""
    began_s = told_s = time.monotonic()
    chunks = [seeds[first : first + _CHUNK] for first in range(0, len(seeds), _CHUNK)]
    injected: Counter[str] = Counter()
    done = steps = commits = 0
    virtual_s = 0.0
    broken: list[History] = []
    is_interrupted = True
    with contextlib.suppress(KeyboardInterrupt), _pool(jobs) as (pool, folder):
        for histories in pool.imap_unordered(functools.partial(live, within=folder), chunks):
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
        is_interrupted = False
    took_s = time.monotonic() - began_s
    print(f"{done} seeds in {took_s:.0f} s ({done / took_s:.1f}/s on {jobs} processes), {len(broken)} broke something")
    print(f"{virtual_s / 3600:.1f} hours of virtual time, {steps} steps, {commits} commits that were checked")
    for what, count in injected.most_common():
        print(f"  {count:7d} {what}")
    verdict = f"NOT CLEAN: {len(broken)} histories broke something" if broken else "every promise held"
    print(f"{verdict}; stopped after {done} of {len(seeds)} seeds" if is_interrupted else verdict)
    if broken:
        return 1
    return _INTERRUPTED if is_interrupted else 0


class _Arguments(argparse.ArgumentParser):
    """Says in one line what is wrong, and with which of make's variables."""

    def error(self, message: str) -> NoReturn:
        for option, variable in (("--seeds", "SEEDS"), ("--replay", "SEED")):
            message = message.replace(f"argument {option}:", f"{option} (make: {variable}=):")
        self.exit(2, f"simulation: {message}\n")


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


_ENDS = (signal.SIGINT, signal.SIGTERM)


def _interrupt(*_: object) -> NoReturn:
    for number in _ENDS:  # once: make hands on the one that its group gets as well
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Do as the command line says."""
    parser = _Arguments(prog="python -m tests.simulation", description=__doc__)
    one_or_many = parser.add_mutually_exclusive_group()
    one_or_many.add_argument("--seeds", type=_count, default=1000, help="how many (%(default)s)")
    one_or_many.add_argument("--replay", type=_seed, metavar="SEED", help="live this one alone, and print everything")
    parser.add_argument("--first", type=_seed, default=0, help="the first one of many (%(default)s)")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="how many at once (%(default)s)")
    options = parser.parse_args()
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if options.replay is not None:
        try:
            return replay(options.replay)
        except KeyboardInterrupt:
            print(f"seed {options.replay}: stopped before its end")
            return _INTERRUPTED
    return explore(range(options.first, options.first + options.seeds), options.jobs)
