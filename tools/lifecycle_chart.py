"""
Draw the state machine of a run from the code, so that the page about it cannot say anything else.

    python tools/lifecycle_chart.py            # rewrites docs/lifecycle.md between its marks
    python tools/lifecycle_chart.py --check    # exits with 1 if that would change it
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from action_retrier._lifecycle import (
    TRANSITIONS,
    Attempted,
    DeadlinePassed,
    Finish,
    Move,
    NotBegun,
    Outcome,
    Raised,
    State,
    Succeeded,
    TimedOut,
    WorkerLost,
    WorkerStopped,
    settle,
)
from action_retrier._policy import RetryPolicy

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lifecycle.md"

POLICY = RetryPolicy(max_failures=1, jitter=0)
RETRY_AFTER_MS = 60_000

OUTCOMES: dict[str, Outcome] = {
    "it returned": Succeeded("null"),
    "it raised": Raised("ConnectionError", "hung up"),
    "it raised `RetryAfter`": Raised("RetryAfter", "", retry_after_ms=RETRY_AFTER_MS),
    "it raised `NonRetryableError`, or what `retry_on` and `no_retry_on` exclude": Raised("E", "", retryable=False),
    "it returned what JSON cannot carry, or too much": Raised("InvalidReturnValue", "", retryable=False),
    "it outlasted `attempt_timeout_ms`": TimedOut(1000),
    "the deadline passed while it was executing": DeadlinePassed(1000),
    "its worker died or lost its lease": WorkerLost("w"),
    "its worker was stopped, and the grace time ran out": WorkerStopped(),
    "it was claimed, and given back before it began": NotBegun(),
}


def chart() -> str:
    """Draw the transitions, in mermaid."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", f"    [*] --> {State.PENDING}: start"]
    for (state, event), following in TRANSITIONS.items():
        lines.append(f"    {state} --> {following or '[*]'}: {event}")
    return "\n".join([*lines, "```"])


def outcomes() -> str:
    """Tabulate what `settle` answers, by asking it."""
    lines = [
        "| how the attempt ended | failures | while retries are left | when none is left | `error_type` |",
        "|---|---|---|---|---|",
    ]
    for how, outcome in OUTCOMES.items():
        first, last = (_settled(outcome, failures) for failures in (0, POLICY.max_failures))
        error_type = f"`{first.failure.error_type}`" if first.failure else "none"
        if isinstance(outcome, Raised) and error_type != "`InvalidReturnValue`":
            error_type = "the exception's"
        cells = [how, f"+ {first.failures}" if first.failures else "unchanged", _tell(first), _tell(last), error_type]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _settled(outcome: Outcome, failures: int) -> Move:
    return settle(Attempted(failures, 0, POLICY), outcome, Random(0))


def _tell(move: Move) -> str:
    if isinstance(move, Finish):
        return f"`{move.state}`"
    if not move.delay_us:
        return f"`{State.PENDING}`, due as before"
    if move.delay_us >= RETRY_AFTER_MS * 1000:
        return f"`{State.PENDING}`, due after the delay it asked for"
    return f"`{State.PENDING}`, due after the backoff"


PARTS = {"chart": chart, "outcomes": outcomes}


def render(page: str) -> str:
    """Replace what stands between the marks of each part."""
    for name, make in PARTS.items():
        text = make()
        mark = re.compile(rf"(<!-- {name}: generated[^>]*-->\n)(?:.*?\n)?(<!-- end of {name} -->)", re.DOTALL)
        if len(mark.findall(page)) != 1:
            raise ValueError(f"{PAGE.name} must have the marks of {name!r} once")
        page = mark.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)
    return page


def differences(page: str) -> Iterator[str]:
    """Yield how *page* differs from what it should be."""
    wanted = render(page)
    yield from difflib.unified_diff(page.splitlines(), wanted.splitlines(), "as it is", "as the code is", lineterm="")


def main() -> int:
    """Rewrite the page, or check it."""
    parser = argparse.ArgumentParser(description="Draw docs/lifecycle.md from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    page = PAGE.read_text("utf-8")
    if parser.parse_args().check:
        found = list(differences(page))
        print(*found, sep="\n", end="\n" if found else "")
        return 1 if found else 0
    PAGE.write_text(render(page), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
