"""The verdict: the figures, and whether everything holds."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from .checks import CHECKS, Case
from .evidence import Evidence
from .plan import Plan


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold, and what contradicts it."""

    name: str
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts it."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Figures:
    """What happened, in numbers."""

    events: int
    rolled_back: int
    started: int
    delivered: int
    retried: int
    failed_for_good: int
    canceled: int
    in_progress: int
    requests: int
    extra_deliveries: int
    attempts_lost: int
    callbacks: int
    failed_callback_tries: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """The figures, and whether everything holds."""

    figures: Figures
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


def judge(evidence: Evidence, plan: Plan) -> Verdict:
    """Hold the witnesses against each other."""
    case = Case(evidence, plan)
    return Verdict(_figures(case), tuple(Check(name, tuple(check(case))) for name, check in CHECKS.items()))


def _figures(case: Case) -> Figures:
    runs = case.evidence.runs
    states = Counter(run.state for run in runs)
    return Figures(
        events=len(case.evidence.journal.started),
        rolled_back=len(case.rolled_back),
        started=len(case.committed),
        delivered=states["succeeded"],
        retried=sum(run.executions > 1 for run in runs),
        failed_for_good=states["failed"],
        canceled=states["canceled"],
        in_progress=states["pending"] + states["running"],
        requests=len(case.evidence.ledger),
        extra_deliveries=sum(delivery.duplicate for delivery in case.evidence.ledger),
        attempts_lost=sum(run.lost for run in runs),
        callbacks=len(case.evidence.log),
        failed_callback_tries=max(0, case.evidence.failing_callback_tries - 1),
    )


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as the JSON object that `--json` prints."""
    return {
        "ok": verdict.holds,
        "figures": {_camel(name): value for name, value in asdict(verdict.figures).items()},
        "checks": [
            {"name": check.name, "ok": check.holds, "problems": list(check.problems)} for check in verdict.checks
        ],
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
