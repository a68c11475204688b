"""What ``doctor`` prints."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ..app import App
from .checks import Check
from .printing import put
from .terminal import counted

_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def print_findings(app: App, checks: Sequence[Check]) -> None:
    """Print each finding, and how many there are to do something about."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for what, verdict, told in checks:
        made.add_row(Text(verdict, style=_STYLES[verdict]), Text(what), Text(told))
    verdicts = [verdict for _, verdict, _ in checks]
    sums = ", ".join(counted(verdicts.count(one), one) for one in ("error", "warning"))
    put(Text(f"database: {app.location} (namespace {app.namespace})"), made, Text(sums))
