"""The table that ``list`` prints."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.table import Table
from rich.text import Text

from ..results import Failed, Run
from .terminal import clean, complain, counted, put, span, width

STYLES = {"pending": "", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow"}
_NARROW = 110  # below, what a run is about shares a column with where it stands


def print_runs(runs: Sequence[Run], now_us: int) -> None:
    """Print a row a run. Its id is never cut, only the story of where it stands is."""
    if not runs:
        complain("No runs.")
        return
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_us)
    is_narrow = width() < _NARROW
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("ID", no_wrap=True)
    made.add_column("STATE", no_wrap=True)
    made.add_column("ACTION", overflow="fold")
    if not is_narrow:
        made.add_column("QUEUE", overflow="fold")
        made.add_column("NOTE")
    for run in runs:
        cells = [Text(clean(run.action))]
        story = Text(describe(run, now), no_wrap=True, overflow="ellipsis", style="dim")
        if is_narrow:
            cells = [cells[0].append("" if run.queue == "default" else f" ({clean(run.queue)})")]
        else:
            cells += [Text(clean(run.queue)), story]
        made.add_row(run.id, Text(run.state, style=STYLES[run.state]), *cells)
        if is_narrow:
            made.add_row("", "", story)
    put(made)


def describe(run: Run, now: datetime) -> str:
    """Say where a run stands, in a few words."""
    if run.callback is not None and run.callback.state == "pending":
        error = f": {clean(run.callback.last_error)}" if run.callback.last_error else ""
        return f"callback pending, {counted(run.callback.tries, 'try', 'tries')}{error}"
    if run.completed_at is not None:
        attempts = f", {counted(len(run.attempts), 'attempt')}" if len(run.attempts) != 1 else ""
        error = f": {clean(run.result.error_type)}: {clean(run.result.error)}" if isinstance(run.result, Failed) else ""
        return f"{span(now - run.completed_at)} ago{attempts}{error}"
    if run.state == "running":
        progress = "" if run.progress is None else f", {run.progress.fraction:.0%} {clean(run.progress.message)}"
        began = f"attempt {run.attempts[-1].number} for {span(now - run.attempts[-1].started_at)}"
        return f"{began}{progress}".rstrip()
    if run.blocked_by is not None:
        return f"no live worker knows {clean(run.blocked_by)}"
    if run.due_at > now:
        backs_off = f"{counted(run.failures, 'failure')}, " if run.failures else ""
        return f"{backs_off}due in {span(run.due_at - now)}"
    return f"due for {span(now - run.due_at)}"
