"""What one sees while the demo runs, and the verdict at its end."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .verify import Verdict

STATES = {"pending": "yellow", "running": "cyan", "succeeded": "green", "failed": "red", "canceled": "magenta"}
BAR_WIDTH = 72
MOST_PROBLEMS = 5  # of one check; the rest are alike, and all are in --json


class Display(Protocol):
    """Where the demo says what is going on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def happened(self, text: str, style: str = "") -> None:
        """Tell one happening."""

    def count(self, states: Mapping[str, int], total: int) -> None:
        """Show how many of *total* runs are in which state."""


class Silence:
    """Nothing: for those who read the JSON."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def happened(self, text: str, style: str = "") -> None:
        """Keep it to oneself."""

    def count(self, states: Mapping[str, int], total: int) -> None:
        """Keep it to oneself."""


class PlainLines:
    """A line for each happening, and one a second for the counts: for files and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_at = time.monotonic()
        self._counted_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def happened(self, text: str, style: str = "") -> None:
        """Print the happening with its time."""
        self._console.print(Text.assemble(_time_since(self._started_at), (text, style)), soft_wrap=True)

    def count(self, states: Mapping[str, int], total: int) -> None:
        """Print the counts, at most once a second."""
        if time.monotonic() - self._counted_at >= 1:
            self._counted_at = time.monotonic()
            self.happened(", ".join(f"{states.get(state, 0)} {state}" for state in STATES) + f" of {total}")


class LiveTable:
    """Happenings that stay, and below them the counts, redrawn in place: for terminals."""

    def __init__(self, console: Console) -> None:
        self._started_at = time.monotonic()
        self._states: Mapping[str, int] = {}
        self._total = 1
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def happened(self, text: str, style: str = "") -> None:
        """Print the happening beside its time, above the counts."""
        line = Table.grid()
        line.add_column(no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(_time_since(self._started_at), Text(text, style=style))
        self._live.console.print(line)

    def count(self, states: Mapping[str, int], total: int) -> None:
        """Take the new counts."""
        self._states, self._total = states, total

    def _draw(self) -> RenderableType:
        bar = Table.grid()
        completed = sum(self._states.get(state, 0) for state in ("succeeded", "failed", "canceled"))
        bar.add_row(ProgressBar(total=self._total, completed=completed, width=BAR_WIDTH))
        counts = Table.grid(padding=(0, 3))
        counts.add_row(
            f"{time.monotonic() - self._started_at:5.1f} s",
            *(Text(f"{self._states.get(state, 0)} {state}", style=style) for state, style in STATES.items()),
        )
        return Group("", bar, counts)


def _time_since(started_at: float) -> Text:
    return Text(f"{time.monotonic() - started_at:5.1f} s  ", style="dim")


def make_display(console: Console, *, silent: bool) -> Display:
    """The display that suits where it is shown."""
    if silent:
        return Silence()
    return LiveTable(console) if console.is_terminal else PlainLines(console)


def print_verdict(console: Console, verdict: Verdict, *, seconds: float) -> None:
    """Print the figures, every check, and what contradicts it."""
    figures = verdict.figures
    console.print()
    for value, meaning in (
        (figures.events, f"events, {figures.rolled_back} of them rolled back with their orders"),
        (figures.delivered, "delivered"),
        (figures.retried, f"retried, {figures.attempts_lost} attempts lost with the killed worker"),
        (figures.failed_for_good, "failed for good"),
        (figures.canceled, "canceled"),
        (figures.in_progress, "still in progress"),
        (
            figures.requests,
            f"requests; {figures.extra_deliveries} came again, and the receiver recognised them by run_id",
        ),
        (figures.callbacks, f"callbacks, {figures.failed_callback_tries} failed tries before them"),
    ):
        console.print(Text.assemble((f"{value:3}", "bold"), f"  {meaning}"))
    console.print()
    for check in verdict.checks:
        console.print(Text.assemble(("holds  ", "green") if check.holds else ("BROKEN ", "bold red"), check.name))
        for problem in check.problems[:MOST_PROBLEMS]:
            console.print(f"       {problem}", markup=False, highlight=False, soft_wrap=True)
        if len(check.problems) > MOST_PROBLEMS:
            console.print(f"       … and {len(check.problems) - MOST_PROBLEMS} more", highlight=False)
    broken = "; ".join(check.name for check in verdict.checks if not check.holds)
    end = (f"does not hold: {broken}", "bold red") if broken else ("everything holds", "bold green")
    console.print(Text.assemble("\n", end, f", after {seconds:.1f} s"))
