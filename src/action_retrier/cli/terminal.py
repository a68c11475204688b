"""How things are said on the terminal: lines, durations, and text that others have written."""

import json
import os
import shutil
import sys
from datetime import datetime, timedelta
from typing import Any, TextIO

LEAST_WIDTH = 60
_WIDE = 10_000  # what is piped is not wrapped: a line a row, whatever its length


def width() -> int:
    """Return how wide a line may be; at least so that the ids of a table are whole."""
    return max(shutil.get_terminal_size((_WIDE, 24)).columns, LEAST_WIDTH)


def is_wrapped() -> bool:
    """Tell whether lines have to end somewhere: on a terminal, or where $COLUMNS says so."""
    return width() < _WIDE


def say(text: str) -> None:
    """Print a line at once; a reader that has gone is no reason to stop working."""
    try:
        _print_line(text, sys.stdout)
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - for the rest of our life


def complain(text: str) -> None:
    """Print a line on stderr."""
    _print_line(text, sys.stderr)


def _print_line(text: str, file: TextIO) -> None:
    """With its end in one write: what is not buffered may be shared by the processes of a supervisor."""
    file.write(text + "\n")
    file.flush()


def print_json(value: Any) -> None:
    """Print one JSON value on a line."""
    print(json.dumps(value, ensure_ascii=False))  # noqa: T201 - this is what prints


def clean(text: str) -> str:
    """Return *text* in one line, with every character that a terminal might obey made visible."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def clean_lines(text: str) -> str:
    """Return *text* with its lines kept, and otherwise as `clean` does."""
    return "\n".join(clean(line) for line in text.splitlines())


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number and what it counts."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def instant(at: datetime) -> str:
    """Return an instant, to the millisecond."""
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} UTC"


def span(duration: timedelta | float) -> str:
    """Return a duration (or seconds) as people say it."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, digits, name in ((10, 1, 1, "s"), (120, 1, 0, "s"), (7200, 60, 0, "min"), (172_800, 3600, 0, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds / 86_400:.0f} days"
