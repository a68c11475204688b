"""``python -m benchmarks trial``: drain with several settings of one library in turns, to find the best ones."""

import argparse
import contextlib

from benchmarks.figures import ratios, spread
from benchmarks.measures import Bench, Contender, Settings, drain, size_for
from benchmarks.places import Places
from benchmarks.sides import Side


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks trial", description=__doc__)
    parser.add_argument("library", help="ours, or a file's name in peers, and its variant: huey:fsync")
    parser.add_argument("database", choices=["sqlite", "postgres", "redis"])
    parser.add_argument("constants", nargs="*", help='constants of its program, a setting each: "LIMIT=100 POOL=4"')
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    library, _, variant = given.library.partition(":")
    contenders = [
        Contender(Side(library, library, variant, constants), given.database, constants or "as it stands")
        for constants in ("", *given.constants)
    ]
    rates: dict[str, list[float]] = {one.label: [] for one in contenders}
    with contextlib.closing(Places()) as places:
        bench = Bench(places, Settings())
        size = size_for(bench, contenders[0], drain)
        for round_ in range(given.rounds):
            for one in contenders:
                rates[one.label].append(drain(bench, one, size)["rate"])
            print(f"{round_ + 1} of {given.rounds} rounds, {size} tasks each", flush=True)
    first = rates[contenders[0].label]
    for label, found in rates.items():
        print(f"{label:30} {spread(found).median:10,.0f} runs/s, {spread(ratios(found, first))} of as it stands")
