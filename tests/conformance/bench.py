"""What tests of completion share: a store, a worker, and what completes its runs."""

import contextlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from action_retrier._completion import Completion, Report
from action_retrier._functions import Mutation
from action_retrier._lifecycle import Attempted, Outcome, Succeeded, settle
from action_retrier._mutations import Mutations
from action_retrier._ops.claims import Claimant
from action_retrier._policy import policy_from_json
from action_retrier._registry import Registry

from ..stores import Store

SHARED = "read committed"
OWN = "serializable"
isolations = pytest.mark.parametrize("isolation", [OWN, SHARED])


class Bench:
    """A store, a worker, and what completes its runs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.registry = Registry()
        self.mutations = Mutations(store.database, self.registry, store.clock, Random(1))
        self.completion = Completion(store.database, self.registry, self.mutations, Random(1))
        self.worker: Claimant | None = None

    def callback(self, function: Callable[..., Any], name: str = "done", **options: Any) -> None:
        self.registry.add_mutation(Mutation(function, name, **options))

    def claimed(self, name: str = "done", **options: Any) -> Any:
        """Start a run with this callback, and claim it."""
        self.store.start("charge", on_complete=name, **options)
        self.worker = self.worker or self.store.worker(mutations=tuple(self.registry.mutations))
        return self.store.claim_one(self.worker)

    def report(self, row: Any, outcome: Outcome = Succeeded('"ok"')) -> Report:  # noqa: B008 - frozen
        assert self.worker is not None
        attempted = Attempted(row["failures"], row["losses"], policy_from_json(row["options"]), row["deadline_in"])
        move = settle(attempted, outcome, self.store.rng)
        suspect = row["losses"] > 0
        return Report(
            row["id"], row["attempt"], self.worker.id, move, row["on_complete"], row["context"], losses=int(suspect)
        )

    async def complete(self, rows: Sequence[Any]) -> None:
        """End runs and call back; once more where a transaction that has just died still holds the row."""
        reports = [self.report(row) for row in rows]
        while reports:
            reports = await self.completion.complete(reports)

    async def check_that_cheating_fails(
        self, smuggle: Callable[[Any], object], *, isolation: Any, swallowed: bool
    ) -> None:
        """Have a callback between honest ones try to end the transaction: they are done, and it is pending."""

        def cheat(ctx: Any, context: Any) -> None:
            self.note(ctx, f"cheat {context}")
            with contextlib.suppress(Exception) if swallowed else contextlib.nullcontext():
                smuggle(ctx.db)
            self.note(ctx, f"cheat on {context}")

        await self.check_a_cheat(cheat, isolation=isolation)

    async def check_a_cheat(self, cheat: Callable[..., object], *, isolation: Any) -> None:
        """Have a callback that tries to end the transaction called between honest ones: they are done, and it is pending."""
        self.callback(cheat, isolation=isolation)
        self.callback(lambda ctx, context: self.note(ctx, f"honest {context}"), "honest", isolation=isolation)
        rows = [self.claimed(name, context=str(n)) for n, name in enumerate(("honest", "done", "honest"))]

        await self.complete(rows)

        assert [self.state(row)[1] for row in rows] == ["done", "pending", "done"]
        assert self.notes == ["honest 0", "honest 2"]
        assert "user code tried to" in self.store.row(rows[1]["id"])["callback_error"]

    def state(self, row: Any) -> tuple[str, str, int]:
        """Return state, callback state and tries."""
        stored = self.store.row(row["id"])
        return stored["state"], stored["callback_state"], stored["callback_tries"]

    @property
    def notes(self) -> list[str]:
        return self.store.system.notes()

    def note(self, ctx: Any, text: str) -> None:
        self.store.system.write_note(ctx.db, text)
