"""What ``list`` prints."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from rich.cells import cell_len
from rich.text import Text

from ..results import Failed, Run
from .printing import hang, put
from .terminal import clean, complain, counted, is_wrapped, span, width

STYLES = {"pending": "", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "yellow"}
_ID, _STATE = 38, 11  # columns, with the space after each
_LEAST_NOTE = 30  # with less room than that beside the names, where a run stands has a line of its own


def print_runs(runs: Sequence[Run], now_us: int) -> None:
    """Print where each run stands. Ids and names are never cut; nothing is where lines are not wrapped."""
    if not runs:
        complain("No runs.")
        return
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_us)
    action = max(6, *(cell_len(clean(run.action)) for run in runs)) + 2
    queue = max(5, *(cell_len(clean(run.queue)) for run in runs)) + 2
    if not is_wrapped() or width() >= _ID + _STATE + action + queue + _LEAST_NOTE:
        put(*_rows(runs, now, action, queue))
    else:
        put(*_blocks(runs, now))


def _rows(runs: Sequence[Run], now: datetime, action: int, queue: int) -> Iterator[Text]:
    """A line a run, in columns of these widths."""
    yield Text(f"{'ID':{_ID}}{'STATE':{_STATE}}{'ACTION':{action}}{'QUEUE':{queue}}NOTE", style="bold")
    for run in runs:
        line = _beginning(run)
        for text, room in ((clean(run.action), action), (clean(run.queue), queue)):
            line.append(text + " " * (room - cell_len(text)))
        yield _fitting(line.append(describe(run, now), style="dim"))


def _blocks(runs: Sequence[Run], now: datetime) -> Iterator[Text]:
    """Two lines a run, or more if its name is long."""
    yield Text(f"{'ID':{_ID}}{'STATE':{_STATE}}ACTION", style="bold")
    for run in runs:
        name = Text(clean(run.action) + ("" if run.queue == "default" else f" ({clean(run.queue)})"))
        if _ID + _STATE + name.cell_len <= width():
            yield _beginning(run) + name
        else:
            yield Text.assemble(f"{run.id:{_ID}}", (run.state, STYLES[run.state]))
            yield hang(Text("  "), name)
        yield _fitting(Text.assemble("  ", (describe(run, now), "dim")))


def _beginning(run: Run) -> Text:
    return Text.assemble(f"{run.id:{_ID}}", (run.state, STYLES[run.state]), " " * (_STATE - len(run.state)))


def _fitting(line: Text) -> Text:
    if is_wrapped():
        line.truncate(width(), overflow="ellipsis")
    return line


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
