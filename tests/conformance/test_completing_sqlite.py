"""What user code can do to a transaction in SQLite's own ways: it ends none, and sets nothing for others."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from action_retrier.results import InProgress

from .bench import SHARED, Bench, isolations

pytestmark = pytest.mark.usefixtures("no_tasks_left")

SMUGGLED: dict[str, Callable[[Any], object]] = {
    "executescript": lambda db: db.executescript("INSERT INTO notes VALUES ('smuggled'); COMMIT; BEGIN"),
    "with db": lambda db: db.__exit__(None, None, None),
    "with db that raises": lambda db: db.__exit__(ValueError, ValueError(), None),
    "isolation_level = None": lambda db: setattr(db, "isolation_level", None),
    "our savepoint": lambda db: db.execute("ROLLBACK TO action_retrier_inner"),
}


@isolations
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
@pytest.mark.parametrize("smuggle", SMUGGLED.values(), ids=SMUGGLED)
async def test_a_callback_cannot_end_the_transaction(
    bench: Bench, isolation: Any, smuggle: Callable[[Any], object], *, swallowed: bool
) -> None:
    """I4: a commit smuggled in is an error, also where its own error is swallowed; nothing commits."""
    await bench.check_that_cheating_fails(smuggle, isolation=isolation, swallowed=swallowed)


async def test_a_callback_in_a_batch_cannot_release_our_savepoint(bench: Bench) -> None:
    """I4: with its savepoint gone a callback that raises could not be undone; a cached statement is no way in."""

    def cheat(ctx: Any, context: Any) -> None:
        bench.note(ctx, f"cheat {context}")
        with contextlib.suppress(Exception):
            ctx.db.execute("RELEASE action_retrier_inner")
        raise ValueError(context)

    bench.callback(cheat, isolation=SHARED)
    rows = [bench.claimed(context=str(number)) for number in range(2)]

    await bench.complete(rows)

    assert bench.notes == []
    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "pending")] * 2


@isolations
async def test_a_conflict_clause_that_rolls_back_commits_nothing_piecemeal(bench: Bench, isolation: Any) -> None:
    """I4: OR ROLLBACK ends the transaction without a ROLLBACK; what the callback writes then must not stay."""

    def conflict(ctx: Any) -> None:
        bench.note(ctx, "before")
        with contextlib.suppress(Exception):
            ctx.db.execute("INSERT OR ROLLBACK INTO notes (text) VALUES ('before')")
        bench.note(ctx, "after")

    bench.callback(conflict, isolation=isolation)
    row = bench.claimed()

    await bench.complete([row])

    assert (bench.notes, bench.state(row)[:2]) == ([], ("succeeded", "pending"))


async def test_settings_that_a_callback_makes_on_the_connection_are_its_own(bench: Bench) -> None:
    """Rows and texts come to us as they are, whatever factory user code has set."""

    def setting(ctx: Any) -> None:
        ctx.db.row_factory = lambda *_: 1 / 0
        ctx.db.text_factory = bytes
        ctx.db.isolation_level = "EXCLUSIVE"

    bench.callback(setting)
    rows = [bench.claimed(), bench.claimed()]

    await bench.complete(rows)

    assert [bench.state(row)[:2] for row in rows] == [("succeeded", "done")] * 2
    assert bench.store.status(bench.store.start()) == InProgress()
