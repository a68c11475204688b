"""Announce workers, and settle what dead ones left."""

from collections.abc import Collection
from random import Random
from typing import NamedTuple

from .._lifecycle import Attempted, Finish, NotBegun, Outcome, WorkerLost, callback_delay_us, settle
from .._policy import policy_from_json
from .._statements import Op, Row, Rows, Statement
from .claims import Claimant, damage_of
from .reports import CallbackMark, Settled, apply_moves


def register_worker(claimant: Claimant, host: str, pid: int) -> Op[None]:
    """Announce an incarnation of a worker; only then can it claim."""
    yield Statement(
        "insert_worker",
        {
            "id": claimant.id,
            "namespace": claimant.namespace,
            "host": host,
            "pid": pid,
            "actions": claimant.actions,
            "mutations": claimant.mutations,
            "queues": claimant.queues,
        },
    )


def announce_names(claimant: Claimant) -> Op[None]:
    """Tell what a worker can run now."""
    names = {"actions": claimant.actions, "mutations": claimant.mutations}
    yield Statement("update_worker", {"id": claimant.id, **names})


def list_workers(namespace: str) -> Op[Rows]:
    """Return the workers' rows, the dead ones that nobody has noticed yet among them."""
    return (yield Statement("select_workers", {"namespace": namespace}))


def list_owners(namespace: str) -> Op[set[str]]:
    """Return the ids of all that have a worker's row, or own a run or a callback."""
    owners = yield Statement("select_owners", {"namespace": namespace}, stands_alone=True)
    return {row["id"] for row in owners}


class Recovered(NamedTuple):
    """
    What became of a dead worker's runs.

    Attributes:
        settled: How many runs.
        is_over: Nothing of it is left. False: somebody's open transaction holds some of it, to be looked at again.
        was_there: It still had its row. False: it has signed off, or somebody else was faster.
    """

    settled: int
    is_over: bool
    was_there: bool


def recover_worker(worker: str, rng: Random, begun: Collection[tuple[str, int]] | None = None) -> Op[Recovered]:
    """
    Settle what a dead worker left behind, and delete its row.

    Args:
        begun: A worker that signs off knows which attempts (run id, number) it has begun: others were claimed
            in its last moment, and cost nothing. None means all.

    The outcome of each run goes through `settle` like any other. Callbacks are left pending, to
    be called alone in transactions of their own: one of them may be what killed the worker.
    """
    runs = yield Statement("select_worker_runs", {"worker": worker})
    settled = []
    for row in runs:
        has_begun = begun is None or (row["id"], row["attempt"]) in begun
        # A damaged row ends here, for good: it must not keep its neighbours from being recovered.
        outcome = (damage_of(row["options"]) or WorkerLost(worker)) if has_begun else NotBegun()
        settled.append(_settle_lost(row, outcome, worker, rng))
    applied = yield from apply_moves(settled)
    is_over = not applied.busy
    callbacks = yield Statement("select_worker_callbacks", {"worker": worker})
    for row in callbacks:
        delay = callback_delay_us(row["callback_tries"], rng)
        error = f"WorkerLost: worker {worker} died while it was calling back"
        released = yield Statement(
            "release_callback", {"id": row["id"], "worker": worker, "delay": delay, "lost": 1, "error": error}
        )
        is_over = is_over and not any(one["is_busy"] for one in released)
    was_there = not is_over or bool((yield Statement("delete_worker", {"id": worker})))
    return Recovered(len(applied.owned), is_over, was_there)


class Owned(NamedTuple):
    """What is a worker's, as the database has it: (run id, attempt) of what it executes, ids of runs it calls back."""

    attempts: set[tuple[str, int]]
    callbacks: set[str]


def owned_by(worker: str) -> Op[Owned]:
    """Return what a worker owns."""
    rows = yield Statement("select_owned", {"worker": worker}, stands_alone=True)
    runs = {(row["id"], row["attempt"]) for row in rows if row["attempt"] is not None}
    return Owned(runs, {row["id"] for row in rows if row["attempt"] is None})


def give_back(worker: str, attempts: Collection[tuple[str, int]], rng: Random) -> Op[int]:
    """Give back what a worker has claimed and never begun: it costs nothing. Return how many there were."""
    rows = yield Statement("select_worker_runs", {"worker": worker})
    unbegun = [row for row in rows if (row["id"], row["attempt"]) in attempts]
    applied = yield from apply_moves([_settle_lost(row, NotBegun(), worker, rng) for row in unbegun])
    return len(applied.owned)


def _settle_lost(row: Row, outcome: Outcome, worker: str, rng: Random) -> Settled:
    attempted = Attempted(row["failures"], row["losses"], policy_from_json(row["options"]), row["deadline_in"])
    move = settle(attempted, outcome, rng)
    owes = isinstance(move, Finish) and row["on_complete"]
    callback = CallbackMark("pending", losses=row["losses"] + 1) if owes else CallbackMark()
    return Settled(row["id"], row["attempt"], worker, move, callback)


def waiting_lanes(namespace: str) -> Op[Rows]:
    """List what is due, a row a kind of work: queue, action, on_complete, due_at."""
    return (yield Statement("select_lanes", {"namespace": namespace}))
