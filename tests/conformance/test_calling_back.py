"""How a worker goes about the callbacks that are due: suspects apart, and nothing kept by one that stops."""

import asyncio
from random import Random
from typing import Any

import pytest

from action_retrier import _pace
from action_retrier._ops.claims import ANY_LOSSES, Claimant, claim_callbacks
from action_retrier._ops.control import cancel_run
from action_retrier._reporter import Reporter
from action_retrier._suspects import Suspects
from action_retrier.errors import DatabaseUnavailable

from ..stores import NAMESPACE
from .bench import Bench


class Caller:
    """The reporter of a worker that knows the callback `done`, which notes the run's context."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.suspects = Suspects()
        self.changed = asyncio.Event()
        self.claims = 0
        self.during_call: Any = lambda: None
        self.during_claim: Any = lambda: None
        bench.callback(self._done)
        self.worker: Claimant = bench.store.worker(mutations=("done",))
        self.reporter = Reporter(
            database=_Watched(self, bench.store.database),  # type: ignore[arg-type]
            completion=bench.completion,
            clock=bench.store.clock,
            rng=Random(1),
            changed=lambda: self.changed.set(),
        )

    def _done(self, ctx: Any, context: str) -> None:
        self.bench.note(ctx, context)
        self.during_call()

    def owe(self, context: str, *, losses: int = 0) -> str:
        """Have a canceled run owe its callback, which may have cost that many workers."""
        run_id = self.bench.store.start(on_complete="done", context=f'"{context}"')
        self.bench.store.write(cancel_run, NAMESPACE, run_id)
        self.bench.store.system.overwrite(run_id, callback_losses=losses)
        return run_id

    async def call_back(self) -> None:
        self.reporter.callbacks_are_due()
        await self.reporter.call_back_once(lambda: self.worker, self.suspects)

    def state(self, run_id: str) -> tuple[str, int, str | None]:
        row = self.bench.store.row(run_id)
        return row["callback_state"], row["callback_tries"], row["callback_worker"]


class _Watched:
    """A database that something happens to beside its writes."""

    def __init__(self, caller: Caller, database: Any) -> None:
        self._caller = caller
        self._database = database

    async def write(self, make: Any) -> Any:
        self._caller.claims += 1
        result = await self._database.write(make)
        self._caller.during_claim()
        return result


@pytest.fixture
def caller(bench: Bench) -> Caller:
    return Caller(bench)


GIVEN_BACK = ("pending", 0, None)
DONE = ("done", 1, None)


async def test_a_worker_that_stops_calls_none_that_is_not_owed_with_an_outcome(caller: Caller) -> None:
    run_id = caller.owe("never")
    caller.reporter.stop()

    caller.reporter.callbacks_are_due()

    assert not caller.reporter.is_busy
    assert caller.state(run_id) == GIVEN_BACK


async def test_a_worker_that_stops_gives_back_what_it_has_not_called(caller: Caller) -> None:
    """Another one need not wait for its end; the try that was no try is not counted."""
    run_ids = [caller.owe(text) for text in "ab"]
    caller.during_call = caller.reporter.stop

    await caller.call_back()

    assert sorted(caller.state(run_id) for run_id in run_ids) == [DONE, GIVEN_BACK]
    assert len(caller.bench.notes) == 1
    assert not caller.reporter.is_busy


async def fail_to_write(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim a suspect whose call comes to nothing, since the database is away."""

    async def away(*_: Any) -> None:
        raise DatabaseUnavailable(problem="away", remedy="wait")

    with monkeypatch.context() as patch:
        patch.setattr(caller.bench.completion, "call_back", away)
        with pytest.raises(DatabaseUnavailable):
            await caller.call_back()


async def test_a_callback_whose_claim_got_no_answer_is_given_back_and_called(caller: Caller) -> None:
    """I4: its claim was committed, and nobody here knows what it has brought. The try that was no try is not counted."""
    owed = {caller.owe("one"), caller.owe("another")}  # due at one instant: which is first is the database's choice
    (claimed,) = caller.bench.store.write(claim_callbacks, caller.worker, 1, max_losses=0)
    run_id = claimed["id"]
    (other,) = owed - {run_id}
    assert caller.state(run_id) == ("pending", 1, caller.worker.id)

    await caller.reporter.return_strays({run_id}, caller.worker.id, caller.reporter.callbacks)

    assert (caller.state(run_id), caller.state(other)) == (GIVEN_BACK, GIVEN_BACK)
    await caller.call_back()
    assert (caller.state(run_id), sorted(caller.bench.notes)) == (DONE, ["another", "one"])


@pytest.mark.parametrize(
    ("known", "what"),
    [("now", "it is known"), ("before", "it has been claimed since"), ("changing", "one is being claimed")],
)
async def test_a_callback_that_a_worker_knows_of_or_may_come_to_know_of_is_not_given_back(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, known: str, what: str
) -> None:
    """I4: another worker would call it beside us."""
    run_id = caller.owe("ours", losses=1)
    before = caller.reporter.callbacks
    assert before == frozenset()
    await fail_to_write(caller, monkeypatch)
    assert caller.reporter.callbacks == {run_id}
    asked = {"now": caller.reporter.callbacks, "before": before, "changing": None}[known]

    await caller.reporter.return_strays({run_id}, caller.worker.id, asked)

    assert caller.state(run_id) == ("pending", 1, caller.worker.id), what


async def test_what_is_claimed_is_not_known_while_a_claim_is_under_way(caller: Caller) -> None:
    """I4: what is ours in the database then may be what the claim is about to bring."""
    run_id = caller.owe("claimed now")
    known: list[Any] = []
    caller.during_claim = lambda: known.append(caller.reporter.callbacks)

    await caller.call_back()

    assert known[0] is None
    assert (caller.state(run_id), caller.reporter.callbacks) == (DONE, frozenset())


async def test_a_suspect_that_could_not_be_called_is_called_again(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been claimed, and is ours until it is called."""
    run_id = caller.owe("suspect", losses=1)
    await fail_to_write(caller, monkeypatch)
    assert caller.state(run_id) == ("pending", 1, caller.worker.id)

    await asyncio.wait_for(caller.reporter.call_back_once(lambda: caller.worker, caller.suspects), 30)

    assert (caller.state(run_id), caller.bench.notes) == (DONE, ["suspect"])


async def test_a_worker_that_stops_gives_back_a_suspect_that_could_not_be_called(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is innocent of the worker's end, which comes in good order."""
    run_id = caller.owe("suspect", losses=1)
    await fail_to_write(caller, monkeypatch)
    caller.reporter.stop()

    await asyncio.wait_for(caller.reporter.call_back_once(lambda: caller.worker, caller.suspects), 30)

    assert (caller.state(run_id), caller.bench.notes) == (GIVEN_BACK, [])
    assert caller.bench.store.row(run_id)["callback_losses"] == 1
    assert not caller.reporter.is_busy


async def test_what_is_due_and_may_not_be_called_yet_is_not_asked_for_without_a_pause(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim in vain is a commit, which has somebody ask what is due, who is told of it again: that would not end."""
    monkeypatch.setattr(_pace, "_FIRST_PAUSE_S", 0.01)
    run_id = caller.owe("suspect", losses=1)
    caller.suspects.start(("a run", 1), 2, 0.0)

    await caller.call_back()
    claims = caller.claims
    caller.reporter.callbacks_are_due()

    assert caller.reporter.is_busy, "what is due is not forgotten: a worker that waits for idleness waits on"
    assert (caller.claims, caller.changed.is_set()) == (claims, False)
    await asyncio.wait_for(caller.changed.wait(), 30)  # whoever asks is told to, after the pause
    caller.suspects.end(("a run", 1))
    await caller.call_back()
    assert (caller.claims > claims, caller.state(run_id)) == (True, DONE)


async def test_a_suspect_that_could_not_be_called_is_given_back_once_another_executes(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two suspects at once would not tell which of them kills the process."""
    run_id = caller.owe("suspect", losses=1)
    await fail_to_write(caller, monkeypatch)
    caller.suspects.start(("a run", 1), 2, 0.0)

    await asyncio.wait_for(caller.reporter.call_back_once(lambda: caller.worker, caller.suspects), 30)

    assert (caller.state(run_id), caller.bench.notes) == (GIVEN_BACK, [])
    await asyncio.wait_for(caller.changed.wait(), 30)  # then whoever wants to look again
    assert not caller.reporter.is_busy


async def test_a_suspect_is_given_back_if_its_claim_brought_it_beside_another(caller: Caller) -> None:
    """A claim of runs was under way, and has brought a suspect."""
    run_id = caller.owe("suspect", losses=1)

    def begin_a_suspect() -> None:
        if caller.state(run_id)[2] is not None:
            caller.suspects.start(("a run", 1), 2, 0.0)

    caller.during_claim = begin_a_suspect

    await caller.call_back()

    assert (caller.state(run_id), caller.bench.notes) == (GIVEN_BACK, [])
    assert caller.suspects.allowance(0.0, of=("a run", 1)) == ANY_LOSSES
