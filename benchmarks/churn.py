"""
``python -m benchmarks.churn``: drain at full speed while somebody's transaction stays open, and time each claim.

PostgreSQL cannot remove what such a transaction might still see: whatever is claimed leaves its dead versions in
tables and indexes, and a claim that walks over them gets slower and slower.
"""

import argparse
import asyncio
import itertools
import json
import secrets
import sys
import time
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from action_retrier import Call
from action_retrier.drivers.postgres import session
from benchmarks.ours import make_app, percentiles
from tests.support.postgres_server import running_server

_BACKLOG = 2000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long the transaction stays open")
    parser.add_argument("--concurrency", type=int, default=500, help="of the worker")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    with running_server(fsync="on", autovacuum_naptime="5s") as server:
        found = asyncio.run(_churn(f"{server.url}?schema=churn_{secrets.token_hex(4)}", server.url, given, console))
    if given.json:
        json.dump(found, sys.stdout, indent=2)


async def _churn(url: str, plain_url: str, given: argparse.Namespace, console: Console) -> list[dict[str, float]]:
    timed = _time_statements("claim_runs", "next_due")
    app, retrier = make_app(url)
    table = Table(title=f"a transaction stays open for {given.seconds:g} s; a claim takes, ms")
    for column in ("s", "runs/s", "claims", "p50", "p95", "p99", "longest look"):
        table.add_column(column, justify="right")
    found = []
    async with app, app.worker(concurrency=given.concurrency) as worker:
        await retrier.run(app, "benchmarks:noop")
        with psycopg.connect(plain_url) as holder:
            holder.execute("SELECT pg_current_xact_id(), count(*) FROM pg_class")  # its snapshot stays with a cursor
            holder.execute("DECLARE held CURSOR FOR SELECT * FROM pg_class")
            began = time.perf_counter()
            part_s = given.seconds / 6
            for part in itertools.count(1):
                runs = 0
                while time.perf_counter() - began < part * part_s:
                    await retrier.run_many(app, [Call("benchmarks:noop") for _ in range(_BACKLOG)])
                    await worker.until_idle()
                    runs += _BACKLOG
                claims, looks = timed["claim_runs"], timed["next_due"]
                row = {"s": part * part_s, "runs/s": runs / part_s, "claims": len(claims), **percentiles(claims)}
                row["longest look"] = max(looks)
                found.append(row)
                table.add_row(*(f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in row.values()))
                claims.clear()
                looks.clear()
                if part == 6:
                    break
    console.print(table)
    return found


def _time_statements(*names: str) -> dict[str, list[float]]:
    """Have the sessions note how long these statements take, in milliseconds."""
    timed: dict[str, list[float]] = {name: [] for name in names}
    execute = session.execute

    def execute_timed(connection: Any, statement: Any, *rest: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(connection, statement, *rest)
        finally:
            if statement.name in timed:
                timed[statement.name].append((time.perf_counter() - began) * 1000)

    session.execute = execute_timed
    return timed


if __name__ == "__main__":
    main()
