"""
Whether what callers were told of one run can be true: `status`, `cancel` and `retry`, one run at a time.

The audit trail has the statuses that a run has had, and the steps between them. A call has happened if it took effect at
one instant between its invocation and its answer. So there must be an order of all steps and calls that agrees with
these times, in which each answer is true: that is searched for, exactly.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

IN_PROGRESS = "inProgress"
GONE = "notFound"
"""The status of a run that has been removed."""
UNKNOWN = "unknown"
"""The answer to a call that got none: it may have happened, at any later time, or not."""


@dataclass(frozen=True, slots=True)
class Step:
    """
    A change of a run, as the audit trail has it.

    Attributes:
        kind: What leads to it: ``complete``, ``remove`` or other ``work`` of a worker's; a caller's ``cancel`` or
            ``retry``, or ``hasten``, which is a retry of a run that backs off.
        status: What `status` says from then on: ``inProgress``, ``canceled``, ``success:...``, ``failed:...``, `GONE`.
        earliest: Its instant is not before this one; *latest*: nor after that one.
        busy: From then on it executes, or its callback is pending: `retry` is refused.
        due: A run that waits is due from this instant on: until then a `retry` hastens it.
    """

    kind: str
    status: str
    earliest: float = -math.inf
    latest: float = math.inf
    busy: bool = False
    due: float = -math.inf


@dataclass(frozen=True, slots=True)
class Operation:
    """
    A call about a run, and what its caller was told.

    Attributes:
        kind: ``status``, ``cancel`` or ``retry``.
        answer: Of `status` the status; of `cancel` ``true`` or ``false``; of `retry` ``ok``, ``RunInProgress`` or
            ``RunSucceeded``; of any `GONE` or `UNKNOWN`.
        invoked: An instant of the clock that the steps' are of, as is *answered*.
    """

    kind: str
    answer: str
    invoked: float
    answered: float = math.inf


def explain(steps: Sequence[Step], operations: Sequence[Operation]) -> str | None:
    """Return what of *operations* cannot be true together; None if all of it can."""
    history = _History(steps, operations)
    if history.agrees():
        return None
    told = "; ".join(
        f"{one.kind} was told {one.answer} [{one.invoked:.0f}, {one.answered:.0f}]"
        for one in sorted(operations, key=lambda one: one.invoked)
    )
    happened = "; ".join(f"{step.kind}: {step.status} [{step.earliest:.0f}, {step.latest:.0f}]" for step in steps)
    return f"no order makes this true: {told or 'no call'}. What happened: {happened or 'nothing'}"


_STARTED = Step("work", IN_PROGRESS)
"""What a run begins with: that it waits."""
_CAUSES = {"cancel": "cancel", "retry": "retry", "hasten": "retry"}
"""By which call a step is made, if by any."""


class _History:
    """The search: depth first, with a memory of what has led nowhere."""

    def __init__(self, steps: Sequence[Step], operations: Sequence[Operation]) -> None:
        self._steps = steps
        # What nobody was told of a status says nothing.
        self._operations = [one for one in operations if (one.kind, one.answer) != ("status", UNKNOWN)]
        self._dead_ends: set[tuple[int, frozenset[int]]] = set()

    def agrees(self) -> bool:
        """Tell whether there is an order."""
        return self._search(0, frozenset(range(len(self._operations))))

    def _search(self, taken: int, left: frozenset[int]) -> bool:
        """Go on after so many steps have been taken, with the operations that are left."""
        left = self._without_what_only_looks(taken, left)
        if taken == len(self._steps) and all(self._operations[number].answer == UNKNOWN for number in left):
            return True
        if (taken, left) in self._dead_ends:
            return False
        if any(self._search(*state) for state in self._next(taken, left)):
            return True
        self._dead_ends.add((taken, left))
        return False

    def _now(self, taken: int) -> Step:
        """Return the step that has made the run what it is."""
        return self._steps[taken - 1] if taken else _STARTED

    def _without_what_only_looks(self, taken: int, left: frozenset[int]) -> frozenset[int]:
        """Let operations happen that change nothing and are true now: later they would do no better."""
        while True:
            until = self._until(taken, left)
            looking = {n for n in left if _only_looks(self._operations[n], self._now(taken))}
            now = {n for n in looking if self._operations[n].invoked <= until}
            if not now:
                return left
            left -= now

    def _next(self, taken: int, left: frozenset[int]) -> Iterator[tuple[int, frozenset[int]]]:
        """Return where one can go from here."""
        until = self._until(taken, left)
        if taken < len(self._steps):
            step = self._steps[taken]
            # Whoever was answered before it could happen must have had his turn.
            if all(self._operations[number].answered >= step.earliest for number in left):
                cause = _CAUSES.get(step.kind)
                if cause is None:
                    yield taken + 1, left
                else:
                    for number in left:
                        operation = self._operations[number]
                        causes = operation.kind == cause and operation.answer in {"true", "ok", UNKNOWN}
                        if causes and operation.invoked <= until:
                            yield taken + 1, left - {number}
        now = self._now(taken)
        if now.status == IN_PROGRESS and not now.busy and until >= now.due:
            # A retry of a run that is on its way does nothing.
            for number in left:
                operation = self._operations[number]
                if (operation.kind, operation.answer) == ("retry", "ok") and operation.invoked <= until:
                    yield taken, left - {number}

    def _until(self, taken: int, left: frozenset[int]) -> float:
        """Return when the first of what is left was over: nothing that was invoked after that can be next."""
        answered = (self._operations[number].answered for number in left)
        latest = self._steps[taken].latest if taken < len(self._steps) else math.inf
        return min(answered, default=math.inf) if latest == math.inf else min([latest, *answered])


def _only_looks(operation: Operation, now: Step) -> bool:
    """Tell whether an operation that changes nothing is told the truth after a step."""
    status = now.status
    if GONE in {operation.answer, status}:
        return operation.answer == status
    match operation.kind, operation.answer:
        case "status", answer:
            return answer == status
        case "cancel", "false":
            return status != IN_PROGRESS
        case "retry", "RunSucceeded":
            return status.startswith("success") and not now.busy
        case "retry", "RunInProgress":
            return now.busy
    return False
