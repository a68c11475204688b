"""
The named points at which a process of the crash tests dies, by SIGKILL, or stops, by SIGSTOP.

Those of the library are `action_retrier.testing.failpoints`. A few more are in the functions of the program itself, and
in details of SQLite's driver, where nothing goes wrong but with the process.
"""

import os
import signal
from typing import Any

from action_retrier import App, DatabaseUnavailable
from action_retrier.drivers.sqlite import database as sqlite_database
from action_retrier.drivers.sqlite import locks, writer
from action_retrier.testing._failpoints import Step, find
from action_retrier.testing._watch import Watch

OWN = {"action.begin", "action.end", "callback.begin", "callback.end", "own.before_commit", "own.after_commit"}
"""In the program's own functions, in whichever thread they run: it says itself that it has come there."""
SQLITE = {
    "wal": "a file is switched to WAL",
    "checkpoint": "the WAL is copied back",
    "stamp": "the time in a lock file is written",
}
"""Steps of its driver; each has a point before and one after."""

_wanted = ""
_remaining = 0
_signal = signal.SIGKILL


def reach(point: str) -> None:
    """Die here if this is the point, or stop."""
    global _remaining  # noqa: PLW0603 - one process, one end
    if point != _wanted:
        return
    _remaining -= 1
    if _remaining == 0:
        os.kill(os.getpid(), _signal)


def install(app: App, point: str, nth: int = 1, by: signal.Signals = signal.SIGKILL) -> None:
    """Make this process die when it comes to *point* for the *nth* time, or stop, if that is what the signal does."""
    global _wanted, _remaining, _signal
    _wanted, _remaining, _signal = point, nth, by
    if point in OWN:
        return
    step = point.partition(".")[0]
    if step not in SQLITE:
        find("failpoint", point)
        Watch(app, lambda step, moment: reach(f"{step.name}.{moment}"), point=point).install()
    elif step == "wal":
        _wrap(sqlite_database, "_switch_to_wal", step)
    elif step == "stamp":
        _wrap(locks.LockFile, "write", step)
    else:
        writer._CHECKPOINT_BYTES = writer._CHECKPOINT_PAUSE_S = 0
        _wrap(writer.Writer, "_checkpoint", step)


def lose(app: App, point: str) -> None:
    """Have an error instead of an answer at *point*, once."""
    lost = False

    def at(step: Step, moment: str) -> None:
        nonlocal lost
        if f"{step.name}.{moment}" == point and not lost:
            lost = True
            raise DatabaseUnavailable(problem=f"the answer is lost at {point}", remedy="do it again")

    Watch(app, at).install()


def _wrap(owner: Any, attribute: str, step: str) -> None:
    original = getattr(owner, attribute)

    def wrapped(*args: Any) -> Any:
        reach(f"{step}.before")
        result = original(*args)
        reach(f"{step}.after")
        return result

    setattr(owner, attribute, wrapped)
