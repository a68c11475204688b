"""Take due runs and callbacks for a worker."""

from dataclasses import dataclass, field
from operator import itemgetter

from .._lifecycle import Raised
from .._policy import damage_in_policy
from .._statements import Op, Rows, Statement

ANY_LOSSES = 2**31 - 1
"""As ``max_losses``: take suspects however many workers they have cost."""

_BY_DUE_TIME = itemgetter("due_at", "id")
_PRIORITY = itemgetter("priority")


@dataclass(frozen=True, slots=True)
class Claimant:
    """
    A worker's incarnation and what it can do.

    Attributes:
        actions: JSON array of the names it can run; *mutations* likewise, of those it can call back.
        queues: JSON array; None means all.
    """

    id: str
    namespace: str
    actions: str
    mutations: str
    queues: str | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """What the claiming statements want to know."""
        return {
            "worker": self.id,
            "namespace": self.namespace,
            "actions": self.actions,
            "mutations": self.mutations,
            "queues": self.queues,
        }


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought."""

    runs: Rows
    suspects: Rows
    registered: bool


@dataclass(frozen=True, slots=True)
class NextDue:
    """
    When the next things are due, in microseconds from now; negative is overdue, None is never.

    Attributes:
        work_us: A run, or a deadline.
        runs_us: Of that, only what can be claimed.
        lanes: Where runs are pending, as `claim_runs` and `next_due` take it.
        suspects_are_due: Whether some of what is due are suspects.
    """

    work_us: int | None
    callbacks_us: int | None
    deadline_us: int | None = None
    lanes: str | None = field(default=None, compare=False)
    suspects_are_due: bool = field(default=False, compare=False)
    runs_us: int | None = field(default=None, compare=False)


def claim_runs(claimant: Claimant, count: int, max_losses: int, lanes: str | None = None) -> Op[Claimed]:
    """
    Take at most *count* due runs, suspects among them only up to *max_losses* and one at a time.

    Of the others only those in *lanes*, a JSON array that `next_due` has told; None means wherever there are any.
    ``registered`` is False when the worker's own row is gone: it has been taken for dead, and
    nothing was claimed.
    """
    suspects: Rows = []
    if max_losses > 0:
        suspects = yield Statement("claim_suspects", claimant.parameters | {"count": 1, "max_losses": max_losses})
    runs: Rows = []
    if count > len(suspects):
        given = claimant.parameters | {"lanes": lanes, "count": count - len(suspects)}
        # After a claim of which nobody knows, its worker gives back what it does not know of.
        runs = yield Statement("claim_runs", given, stands_alone=not suspects)
        runs.sort(key=_BY_DUE_TIME)
        runs.sort(key=_PRIORITY, reverse=True)  # which leaves those of one priority as they are
    registered = True
    if not runs and not suspects:
        registered = yield from _is_registered(claimant)
    return Claimed(runs, suspects, registered)


def damage_of(options: str) -> Raised | None:
    """Return how a run fails whose stored options cannot be read; None if they can."""
    problem = damage_in_policy(options)
    if problem is None:
        return None
    told = f"the row of this run is damaged: its stored options cannot be read ({problem})"
    return Raised(problem.partition(":")[0], told, retryable=False)


def claim_callbacks(claimant: Claimant, count: int, max_losses: int) -> Op[Rows]:
    """Take at most *count* due callbacks, and count their tries."""
    return (yield Statement("claim_callbacks", claimant.parameters | {"count": count, "max_losses": max_losses}))


def next_due(claimant: Claimant, max_losses: int, lanes: str | None = None) -> Op[NextDue]:
    """Tell how long there is nothing to do; with *lanes* only of the runs in them."""
    limits = {"max_losses": max_losses, "lanes": lanes}
    rows = yield Statement("next_due", claimant.parameters | limits, stands_alone=True)
    (row,) = rows
    suspects_are_due = row["suspects_in"] is not None and row["suspects_in"] <= 0
    runs_us = earliest(row["runs_in"], row["suspects_in"])
    work_us = earliest(runs_us, row["deadlines_in"])
    return NextDue(work_us, row["callbacks_in"], row["deadlines_in"], row["lanes"], suspects_are_due, runs_us)


def earliest(*times_us: int | None) -> int | None:
    """Return the first of them; None is never."""
    return min((us for us in times_us if us is not None), default=None)


def _is_registered(claimant: Claimant) -> Op[bool]:
    rows = yield Statement("select_workers", {"namespace": claimant.namespace}, stands_alone=True)
    return any(row["id"] == claimant.id for row in rows)
