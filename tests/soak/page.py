"""
What `docs/reliability.md` shows of a soak: ``python -m tests.soak.page soak.json`` prints it, both databases side by side.

The file is what ``SOAK_ARGS="--json soak.json"`` has left.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .markdown import table
from .names import CAME_OF_IT, NAMES, PROMISES, RECOVERY_IS, WORK, key

DATABASES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
TIMES = {
    "recovery": "recovery after: {}",
    "server_away": "server away: {}",
    "next_execution_once_it_is_back": "from then until the next execution begins: {}",
}
Soak = dict[str, Any]


def page(told: dict[str, Any]) -> str:
    """Return it, as Markdown."""
    soaks: list[Soak] = told["soaks"]
    machine = told["machine"]
    databases = " and ".join(f"{DATABASES[soak['database']]} {soak['database_version']}" for soak in soaks)
    lines = [
        f"Seed {told['seed']}, begun {told['began'][:10]}, on {machine['cores']} cores with {machine['python']}, {databases}:"
        f" {told['verdict']}.",
        "",
        *table(["", *_names(soaks)], _totals(soaks)),
        *table(["fault: times, and what came of it", *_names(soaks)], _faults(soaks)),
        *table(["broken promise", *_names(soaks)], _rows(PROMISES, soaks, "broken_promises")),
        *table(["work", *_names(soaks)], _rows(WORK, soaks, "work")),
        RECOVERY_IS,
        "",
        *table(["s: times, median, 95 %, worst", *_names(soaks)], _times(soaks)),
    ]
    if told["crash_points"]:
        points = told["crash_points"]
        lines.append(f"Of {points['points']:,} crash points on SQLite {points['failed']} failed.")
    return "\n".join(lines).rstrip()


def _names(soaks: Iterable[Soak]) -> list[str]:
    return [DATABASES[soak["database"]] for soak in soaks]


def _totals(soaks: list[Soak]) -> Iterable[list[str]]:
    yield ["runs", *(f"{soak['runs']:,}" for soak in soaks)]
    for state in ("succeeded", "failed", "canceled", "removed"):
        yield [f"- {state}", *(f"{soak['states'].get(state, 0):,}" for soak in soaks)]
    yield ["seconds", *(f"{soak['took_s']:,.0f}" for soak in soaks)]


def _faults(soaks: list[Soak]) -> Iterable[list[str]]:
    for kind, name in NAMES.items():

        def shown(fault: dict[str, Any] | None, kind: str = kind) -> str:
            if fault is None:
                return ""
            came = CAME_OF_IT.get(kind)
            return f"{fault['injected']:,}" + (f": {fault[key(came)]:,} {came}" if came else "")

        found = [soak["faults"].get(key(kind)) for soak in soaks]
        if any(found):
            yield [name, *map(shown, found)]


def _rows(names: dict[str, str], soaks: list[Soak], where: str) -> Iterable[list[str]]:
    for name, words in names.items():
        found = [soak[where].get(key(name)) for soak in soaks]
        if any(one is not None for one in found):
            yield [words, *("" if one is None else f"{one:,}" for one in found)]


def _times(soaks: list[Soak]) -> Iterable[list[str]]:
    for group, words in TIMES.items():
        for name in NAMES.values():
            found = [soak["times_s"][group].get(key(name)) for soak in soaks]
            if any(found):
                yield [words.format(name), *(_shown_times(one) for one in found)]


def _shown_times(times: dict[str, float] | None) -> str:
    if not times:
        return ""
    return f"{times['count']:,}: {times['p50']:.2f}, {times['p95']:.2f}, {times['max']:.2f}"


def main() -> None:
    """Print it."""
    print(page(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
