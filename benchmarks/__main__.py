"""
Measure, save, and write the page.

``python -m benchmarks report FILE`` only writes the page; ``python -m benchmarks trial LIBRARY DATABASE CONSTANTS...``
finds a library's best settings. What has been measured of the same code is kept, and said to be: stop it as you like,
and start it again.
"""

import argparse
import contextlib
import fnmatch
import sys
import time
from pathlib import Path

from benchmarks import machine, trials
from benchmarks.catalogue import Measurement, catalogue
from benchmarks.environments import CACHE, ROOT, UnavailableError
from benchmarks.measures import Bench, Contender, Settings
from benchmarks.places import Places
from benchmarks.report import write
from benchmarks.results import Results, is_kept
from benchmarks.running import in_short, run
from benchmarks.sides import FailedError

RESULTS = ROOT / "docs" / "performance" / "results.json"


def main() -> None:
    if sys.argv[1:2] == ["report"]:
        _report(sys.argv[2:])
        return
    if sys.argv[1:2] == ["trial"]:
        trials.main(sys.argv[2:])
        return
    given = _arguments()
    for pattern in (*(given.only or ()), *given.without):
        if not any(_fits(one, pattern) for one in catalogue()):
            sys.exit(f"no measurement has such a name: {pattern}; --list shows them")
    chosen = [one for one in catalogue() if _is_chosen(one, given)]
    if not chosen:
        sys.exit("no measurement is all of that: --list shows them")
    results = Results(given.results or (CACHE / "quick.json" if given.quick else RESULTS))
    if given.list:
        for one in chosen:
            known = results.entries.get(one.name)
            print(f"{one.name:34} {one.family.title}{f' [{in_short(known)}]' if known else ''}")
        return
    failed = _measure(chosen, results, given)
    print(f"\nresults: {results.path}")
    if not given.no_report:
        _report([str(results.path)])
    if failed:
        print("\nnot measured:", *failed, sep="\n  ")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the measurements, and what is known of each")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="measure those whose name begins with it or has it as a part: drain/postgres, huey, '*/sqlite/*'; may be repeated",
    )
    parser.add_argument("--not", action="append", default=[], dest="without", metavar="NAME", help="leave those out")
    parser.add_argument("--database", choices=["sqlite", "postgres", "redis"], help="measure those on it only")
    parser.add_argument("--against", choices=["ours", "peers"], help="ours and the floor only, or the peers only")
    parser.add_argument("--again", action="store_true", help="measure what is known as well")
    parser.add_argument("--quick", action="store_true", help="seconds for each: whether it works, not how fast it is")
    parser.add_argument("--pairs", type=int, help="how many pairs (20)")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds for a measurement at most (600)")
    parser.add_argument("--idle", type=float, metavar="S", help="seconds to watch an idle worker (30)")
    parser.add_argument("--held", type=float, metavar="S", help="seconds that a transaction stays open (300)")
    parser.add_argument("--recovery", type=float, metavar="S", help="seconds to wait for a recovery (120)")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="where they are kept (docs/performance/results.json)"
    )
    parser.add_argument("--directory", type=Path, help="where SQLite's files are made: on a real disk")
    parser.add_argument("--no-report", action="store_true", help="write no page")
    return parser.parse_args()  # fmt: skip


def _fits(one: Measurement, pattern: str) -> bool:
    return one.name.startswith(pattern) or pattern in one.name.split("/") or fnmatch.fnmatch(one.name, pattern)


def _is_chosen(one: Measurement, given: argparse.Namespace) -> bool:
    sides = [side.side.library for side in (one.ours, one.theirs) if side is not None]
    has_peer = bool(set(sides) - {"ours", "floor"})
    return (
        (not given.only or any(_fits(one, pattern) for pattern in given.only))
        and not any(_fits(one, pattern) for pattern in given.without)
        and (given.database is None or given.database == one.name.split("/")[1])
        and (given.against is None or has_peer == (given.against == "peers"))
    )


def _measure(chosen: list[Measurement], results: Results, given: argparse.Namespace) -> list[str]:
    settings = Settings.quick() if given.quick else Settings()
    for name, value in (
        ("pairs", given.pairs),
        ("budget_s", given.budget),
        ("idle_s", given.idle),
        ("held_s", given.held),
        ("recovery_s", given.recovery),
    ):
        if value is not None:
            setattr(settings, name, value)
    digest, commit = machine.source(), machine.commit()
    places = Places(given.directory)
    bench = Bench(places, settings, lambda family, one: _known_rate(results, family, one))
    failed = []

    def is_known(one: Measurement) -> bool:
        return is_kept(results.entries.get(one.name), digest)

    with contextlib.closing(places):
        about = {
            "source": digest,
            "commit": commit,
            "quick": given.quick,
            "machine": machine.facts(places, needs_postgres=any(_needs_postgres(one) for one in chosen)),
            "settings": vars(settings),
        }
        began = time.monotonic()
        durations = _Durations(results, given.quick)
        for number, one in enumerate(chosen, 1):
            before = results.entries.get(one.name)
            prefix = f"[{number}/{len(chosen)}] {one.name}: "
            if not given.again and is_known(one):
                assert before is not None
                print(f"{prefix}kept from {before['measured_at']} (--again repeats it): {in_short(before)}")
                continue
            entry = run(one, bench, results, about, lambda line, prefix=prefix: _progress(prefix + line))
            durations.taken[one.family.name] = entry["seconds"]
            to_go = sum(durations.expected(other) for other in chosen[number:] if given.again or not is_known(other))
            passed = time.monotonic() - began
            _progress("")
            print(
                f"\r{prefix}{in_short(entry)}; {passed / 60:.0f} min passed, about {to_go / 60:.0f} to go", flush=True
            )
            if entry["failed"]:
                failed.append(f"{one.name}: {entry['failed']}")
    return failed


class _Durations:
    """How long measurements will take, as far as can be told."""

    def __init__(self, results: Results, is_quick: bool) -> None:  # noqa: FBT001
        self._before = {name: one["seconds"] for name, one in results.entries.items() if one["quick"] == is_quick}
        self.taken: dict[str, float] = {}

    def expected(self, one: Measurement) -> float:
        """Return seconds: as last time, else as the last of its family, else as the mean of all so far."""
        if one.name in self._before:
            return float(self._before[one.name])
        return self.taken.get(one.family.name, sum(self.taken.values()) / len(self.taken))


def _known_rate(results: Results, family: str, one: Contender) -> float | None:
    return results.rate(family, one.database, one.side.name)


def _needs_postgres(one: Measurement) -> bool:
    return any(side is not None and side.database == "postgres" for side in (one.ours, one.theirs))


def _progress(line: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line[:200]}", end="", flush=True)


def _report(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description="Write the page from raw results.")
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="docs/performance.md for the results that are in docs")
    given = parser.parse_args(arguments)
    where = given.page or given.results.parent.with_suffix(".md")
    if given.results.resolve() != RESULTS and given.page is None:
        where = given.results.with_suffix(".md")
    for path in write(Results(given.results), where):
        print(f"written: {path}")


if __name__ == "__main__":
    try:
        main()
    except (FailedError, UnavailableError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nstopped; what was measured is kept")
