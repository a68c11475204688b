"""
The steps of the library at which a test can have something go wrong: the one list of them.

Production code knows nothing of it. An operation is recognized by the name of its function when a watched App's
database is given it, see `action_retrier.testing._watch`; without a watch not even that happens.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._calls import Calls
from .._maintenance import Maintenance
from .._ops import claims, control, reports, starts, workers

By = Literal["worker", "caller", "opener"]

_COMMITS = ("before", "before_commit", "after_commit")
_AROUND = ("before", "after")


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Step:
    """
    Something that the library does.

    Attributes:
        name: In the words of the documentation.
        what: One line for people.
        by: Who does it: a worker, whoever calls the retrier, or whoever opens the database.
        operation: Which operation it is; None for what is none.
        has_written: Which of its results mean that it has written something: only then does its commit count.
        moments: At which moments of it something can go wrong.
    """

    name: str
    what: str
    by: By = "worker"
    operation: Callable[..., Any] | None = None
    has_written: Callable[[Any], bool] = _always
    moments: tuple[str, ...] = _COMMITS

    @property
    def points(self) -> tuple[str, ...]:
        """The failpoints, in their order."""
        return tuple(f"{self.name}.{moment}" for moment in self.moments)


STEPS = {
    step.name: step
    for step in (
        # What callers do.
        Step("start", "runs are started", "caller", starts.start_runs, bool),
        Step("cancel", "a run is canceled", "caller", control.cancel_run, bool),
        Step("cancel_all", "runs are canceled in bulk", "caller", control.cancel_runs, bool),
        Step("retry", "a run is started afresh", "caller", Calls.retry),
        Step("retry_all", "runs are started afresh in bulk", "caller", control.retry_runs, bool),
        Step("cleanup", "a run is removed", "caller", control.clean_up_run),
        # The life of a worker.
        Step("lease", "a worker takes its lease", moments=_AROUND),
        Step("register", "a worker announces itself", operation=workers.register_worker),
        Step("announce", "a worker announces functions registered since", operation=workers.announce_names),
        Step("heartbeat", "a worker renews its lease", moments=_AROUND),
        Step("sign_off", "a worker that stops settles what it leaves", operation=workers.recover_worker),
        # The life of a run.
        Step("claim", "due runs are taken", operation=claims.claim_runs, has_written=lambda c: c.runs or c.suspects),
        Step("action", "an action is executed; after: it has ended, and nobody knows", moments=_AROUND),
        Step("progress", "what attempts say of their progress is written", operation=reports.store_progress),
        Step("report", "ends of attempts are written", operation=reports.apply_moves, has_written=lambda a: a.owned),
        Step(
            "callback",
            "an on_complete mutation is called; after: it has returned, and nothing is committed",
            moments=_AROUND,
        ),
        Step("callback_claim", "pending callbacks are taken", operation=claims.claim_callbacks, has_written=bool),
        Step("callback_done", "a callback is called alone", operation=reports.finish_callback, has_written=bool),
        Step(
            "callback_postponed",
            "a callback that raised is put off",
            operation=reports.postpone_callback,
            has_written=bool,
        ),
        Step(
            "callback_given_back", "a callback taken and not called is given back", operation=reports.return_callbacks
        ),
        Step("give_back", "runs taken and not begun are given back", operation=workers.give_back, has_written=bool),
        # What any worker does for all.
        Step("recover", "the runs of a dead worker are settled", operation=Maintenance._recover, has_written=bool),
        Step("expire", "runs past their deadline fail", operation=reports.expire_runs, has_written=bool),
        Step("prune", "old runs are removed", operation=control.prune_runs, has_written=bool),
        # Opening.
        Step(
            "migrate",
            "the schema is created or upgraded, statement by statement",
            "opener",
            moments=("before", "statement", "before_commit", "after_commit"),
        ),
    )
}
BY_OPERATION = {step.operation.__name__: step for step in STEPS.values() if step.operation is not None}
BY_POINT = {point: step for step in STEPS.values() for point in step.points}


def failpoints() -> dict[str, str]:
    """
    Return the names of all failpoints, and what happens there.

    Example:
        >>> failpoints()["report.before_commit"]
        'ends of attempts are written'
    """
    return {point: step.what for point, step in BY_POINT.items()}


def find(kind: Literal["step", "failpoint"], name: str) -> Step:
    """Return the step of that name, or that a failpoint belongs to. Raises ValueError for a name that is none."""
    known: Mapping[str, Step] = STEPS if kind == "step" else BY_POINT
    if name not in known:
        raise ValueError(f"no {kind} {name!r}{_meant(kind, name)}")
    return known[name]


def _meant(kind: Literal["step", "failpoint"], name: object) -> str:
    """Say what may have been meant, or else what there is."""
    if kind == "step" and name in BY_POINT:
        return ": it is a failpoint, which crash_at and fail_at take"
    stem, _, moment = str(name).partition(".")
    close = difflib.get_close_matches(stem, STEPS, n=1)
    if not close:
        return f"; there are {', '.join(STEPS)}{'' if kind == 'step' else ', each with its moments: see failpoints()'}"
    step = STEPS[close[0]]
    if kind == "step":
        return f": did you mean {step.name}?"
    (point,) = difflib.get_close_matches(f"{step.name}.{moment}", step.points, n=1, cutoff=0)
    return f"{f': did you mean {point}?' if moment else ':'} {step.name} has {', '.join(step.points)}"
