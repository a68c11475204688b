"""``doctor``: is the database well, and does everything that waits have somebody who does it?"""

import asyncio

import typer

from .._ops.health import read_health
from ..app import App
from .checks import Judgement, judge
from .loading import database_of, find_app
from .options import AppOption, DatabaseOption, JsonOption, NamespaceOption
from .terminal import print_json

PATIENCE_US = 60_000_000
"""A run that has been due for longer counts as stuck."""


def doctor(
    *,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """
    Check the database, the workers and what waits.

    Each finding says what to do about it.

    Exit code 1: at least one check found an error.
    """
    found = find_app(app, database, namespace)
    checks = [*database_of(found).diagnose()]
    judgement: Judgement | None = None
    if not any(verdict == "error" for _, verdict, _ in checks):
        # A database that is not well is not opened for work: that could change it.
        judgement = examine(found)
        checks += judgement.checks
    is_well = all(verdict != "error" for _, verdict, _ in checks)
    if json:
        print_json(
            {
                "database": found.location,
                "namespace": found.namespace,
                "ok": is_well,
                "checks": [{"check": what, "verdict": verdict, "found": told} for what, verdict, told in checks],
                "workers": [] if judgement is None else judgement.workers,
            }
        )
    else:
        from .findings import print_findings  # noqa: PLC0415 - a worker needs no tables

        print_findings(found, checks)
    if not is_well:
        raise typer.Exit(1)


def examine(app: App) -> Judgement:
    """Judge the workers and what waits for them."""
    database = database_of(app)
    health = database.read_sync(lambda: read_health(app.namespace, PATIENCE_US))
    known = {row["id"] for row in (*health.workers, *health.owned)}
    dead = set(asyncio.run(database.leases.dead(sorted(known))))
    silent = set(asyncio.run(database.leases.silent(sorted(known - dead))))
    return judge(health, dead=dead, silent=silent)
