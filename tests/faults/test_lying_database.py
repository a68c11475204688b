"""Under a database whose answers cannot be trusted every promise holds: nothing lost, nothing twice, no cancel undone."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

import pytest

from action_retrier import ActionRetrier, App, Canceled, Completed, Failed, MutationCtx, RunResult, Success, app

from .. import invariants
from ..stores import System
from .lying import Lie, LyingDatabase

T = TypeVar("T")

RUNS = 150
LIMIT_S = 60.0
QUICK: dict[str, Any] = {"initial_backoff_ms": 1, "max_backoff_ms": 20}
NEVER = 1_000_000


async def told(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the answer is no lie, as a careful client would."""
    while True:
        try:
            return await call()
        except Lie:
            continue


class Shop:
    """An App over a liar, and what happens in it."""

    def __init__(self, system: System, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.rng = Random(seed)
        self.executions: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        opened: list[LyingDatabase] = []
        open_database = app.open_database

        def lying(*args: Any, **options: Any) -> Any:
            opened.append(LyingDatabase(open_database(*args, **options), Random(seed)))
            return opened[0]

        monkeypatch.setattr(app, "open_database", lying)
        self.app = App(system.url)
        (self.database,) = opened
        self.retrier = ActionRetrier(self.app)

        @self.app.action(name="work")
        async def work(ctx: Any, failures: int, takes_s: float) -> int:
            self.executions[ctx.run_id] += 1
            await asyncio.sleep(takes_s)
            if ctx.attempt <= failures:
                raise ConnectionError("not yet")
            return failures

        def record(ctx: MutationCtx, run_id: str, result: RunResult) -> None:
            system.write_note(ctx.db, f"{run_id} {result.type}")
            self.calls[run_id] += 1
            if self.calls[run_id] <= 2 and self.rng.random() < 0.3:
                raise ValueError("not this time")

        self.app.mutation(name="alone")(record)
        self.app.mutation(name="shared", isolation="read committed")(record)

    async def start(self, number: int) -> str:
        """Start one run, once, whatever the database says."""
        args = {"failures": self.rng.choice([0, 0, 1, 3, NEVER]), "takes_s": self.rng.uniform(0, 0.02)}
        return await told(
            lambda: self.retrier.run(
                self.app,
                "work",
                args,
                on_complete=self.rng.choice([None, "alone", "shared"]),
                max_failures=4,
                idempotency_key=str(number),
                **QUICK,
            )
        )

    async def cancel(self, run_id: str) -> bool:
        """Cancel it; tell whether that is what has ended it, as the database says."""
        return await told(lambda: self.retrier.cancel(self.app, run_id))


@pytest.mark.timeout(150)
@pytest.mark.parametrize("seed", range(2))
async def test_promises_hold_under_a_database_that_lies(
    system: System, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    shop = Shop(system, monkeypatch, seed)
    async with shop.app, shop.app.worker(concurrency=20):
        run_ids = [await shop.start(number) for number in range(RUNS)]
        # False may be a lie's doing: its own first try has canceled it. True never is.
        canceled = [run_id for run_id in shop.rng.sample(run_ids, RUNS // 5) if await shop.cancel(run_id)]
        give_up_at = time.monotonic() + LIMIT_S
        while not is_settled(system):
            assert time.monotonic() < give_up_at, [row for row in system.table("runs") if row["completed_at"] is None]
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.05)
        shop.database.be_honest()
        statuses = {run_id: await shop.retrier.status(shop.app, run_id) for run_id in run_ids}

    assert min(shop.database.told[lie] for lie in ("before", "after", "late")) > 5, "there were lies"
    rows = {row["id"]: row for row in system.table("runs")}
    assert set(rows) == set(run_ids)
    assert len(run_ids) == RUNS, "one run for each key"
    invariants.check({name: system.table(name) for name in ("runs", "attempts", "workers")})
    assert all(statuses[run_id] == Completed(Canceled()) for run_id in canceled)
    for run_id, row in rows.items():
        status = statuses[run_id]
        assert isinstance(status, Completed)
        assert isinstance(status.result, Success | Failed | Canceled)
        assert shop.executions[run_id] <= 5, "I8: max_failures + 1"
        due = [f"{run_id} {status.result.type}"] if row["on_complete"] else []
        assert [note for note in system.notes() if note.startswith(run_id)] == due, "I4: exactly once"


def is_settled(system: System) -> bool:
    """Tell whether every run has ended and called back."""
    rows = system.table("runs")
    return all(row["completed_at"] is not None and row["callback_state"] != "pending" for row in rows)
