"""What ``show`` tells: everything known about one run, in the order in which it happened."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.text import Text

from .._policy import RetryPolicy
from ..results import Attempt, Failed, Run, Success, to_json
from .listing import STYLES, describe
from .printing import hang, put
from .terminal import clean, clean_lines, instant, span

_TOLD_APART = frozenset({"queue", "priority"})


def print_story(run: Run, now_us: int) -> None:
    """Print the facts, the attempts with the waits between them, the end, and the callback."""
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_us)
    put(Text.assemble("run ", (run.id, "bold"), "  ", (run.state, STYLES[run.state])), *_story(run, now))


def _story(run: Run, now: datetime) -> Iterator[Text]:
    facts = [*_facts(run, now)]
    widest = max(len(name) for name, _ in facts)
    for name, value in facts:
        yield hang(Text(f"{name:{widest}}  ", style="dim"), Text(value))
    yield Text()
    if run.attempts:
        yield from _attempts(run, now)
    else:
        yield Text("no attempt yet")
    failed = [one for one in run.attempts if one.traceback]
    if failed:
        earlier = " (those of earlier ones are in --json)" if len(failed) > 1 else ""
        yield Text(f"\ntraceback of attempt {failed[-1].number}{earlier}", style="dim")
        yield Text(clean_lines(failed[-1].traceback or ""))
    if run.completed_at is not None:
        yield Text()
        yield hang(Text(f"{instant(run.completed_at)}  "), Text(_result(run), style=STYLES[run.state]))
    if run.callback is not None:
        yield Text()
        yield from _callback(run)


def _facts(run: Run, now: datetime) -> Iterator[tuple[str, str]]:
    yield "action", clean(run.action)
    yield "args", _json(run.args)
    if run.context is not None:
        yield "context", _json(run.context)
    yield "queue", clean(run.queue) + (f", priority {run.priority}" if run.priority else "")
    if run.idempotency_key is not None:
        yield "idempotency key", clean(run.idempotency_key)
    defaults = dataclasses.asdict(RetryPolicy())
    own = {
        name: value
        for name, value in run.options.items()
        if name not in _TOLD_APART and value != defaults.get(name, value)
    }
    yield "options", ", ".join(f"{name}={_json(value)}" for name, value in own.items()) or "the defaults"
    yield "created", instant(run.created_at)
    if run.completed_at is None:
        yield "due", instant(run.due_at)
    if run.progress is not None:
        yield "progress", f"{run.progress.fraction:.0%} {clean(run.progress.message)}".rstrip()
    if run.blocked_by is not None:
        yield "blocked by", f"{clean(run.blocked_by)}: no live worker knows it; start one that does"
    elif run.completed_at is None:
        yield "now", describe(run, now)


def _attempts(run: Run, now: datetime) -> Iterator[Text]:
    widest = len(f"attempt {run.attempts[-1].number}")
    indent = Text(" " * (widest + 2))
    for one, following in zip(run.attempts, [*run.attempts[1:], None], strict=True):
        took = f"took {span(one.ended_at - one.started_at)}" if one.ended_at else f"for {span(now - one.started_at)}"
        head = Text(f"{f'attempt {one.number}':{widest}}  ")
        yield hang(head, Text.assemble(f"{instant(one.started_at)}, {took}  ", _ending(one)))
        if one.worker is not None:
            yield hang(indent, Text(f"on worker {one.worker}", style="dim"))
        if one.delay_ms is not None:
            yield hang(indent, Text(f"then {span(one.delay_ms / 1000)} until the next was due", style="dim"))
        elif following is not None:
            gap = following.started_at - (one.ended_at or one.started_at)
            yield hang(indent, Text(f"then nothing, until it was started afresh after {span(gap)}", style="dim"))


def _ending(attempt: Attempt) -> tuple[str, str]:
    if attempt.ended_at is None:
        return "executing", STYLES["running"]
    if attempt.error_type is None:
        return "succeeded", STYLES["succeeded"]
    return _error(attempt.error_type, attempt.error), STYLES["failed"]


def _result(run: Run) -> str:
    if isinstance(run.result, Success):
        return f"succeeded: {_json(run.result.return_value)}"
    if isinstance(run.result, Failed):
        return f"failed: {_error(run.result.error_type, run.result.error)}"
    return "canceled"


def _callback(run: Run) -> Iterator[Text]:
    assert run.callback is not None
    tries = run.callback.tries
    told = {
        "none": "is called when the run completes",
        "pending": f"has not committed in {tries} tries, and is tried until it has"
        if tries > 1
        else f"has not committed{' at the first try' if tries else ' yet'}, and is tried until it has",
        "done": f"committed at try {tries}" if tries > 1 else "committed at the first try",
    }[run.callback.state]
    yield hang(Text("callback "), Text(f"{clean(run.callback.name)} {told}"))
    if run.callback.last_error:
        yield hang(Text("its last error: "), Text(clean(run.callback.last_error), style=STYLES["failed"]))


def _error(error_type: str, error: str | None) -> str:
    return clean(error_type) if not error or error == error_type else f"{clean(error_type)}: {clean(error)}"


def _json(value: Any) -> str:
    return clean(to_json(value))
