"""
Let everything go wrong for as long as wanted, and see that nothing is lost.

``make soak DATABASE=postgres DURATION=30m SEED=7``: the same seed injects the same faults in the same order.
Ctrl-C has it come to its end early, and tell what it has seen; a second one ends it at once.
"""

import argparse
import datetime as dt
import json
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from .interruption import EXIT_CODE, Interruption
from .report import Report
from .storm import RATE, soak
from .writes import COMPILER, GROUPS, every_write

_UNITS = {"s": 1, "m": 60, "h": 3600}
_LEAST_S = 30
_VARIABLES = {"DATABASE", "DURATION", "SEED", "EVERY_WRITE"}
"""Of make's, and the metavars of the options that they give."""


class _Arguments(argparse.ArgumentParser):
    """Says in one line what is wrong, and with which of make's variables."""

    def error(self, message: str) -> NoReturn:
        for action in self._actions:
            option = action.option_strings[-1]
            variable = action.metavar if action.metavar in _VARIABLES else "SOAK_ARGS"
            message = message.replace(f"argument {option}:", f"{option} (make: {variable}=):")
        self.exit(2, f"soak: {message}\n")


def _seconds(text: str) -> float:
    """Read a duration: ``90``, ``90s``, ``30m``, ``2h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 30m or 2h")
    seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if not _LEAST_S <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least {_LEAST_S}s, and finite")
    return seconds


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _each(text: str) -> int:
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return number


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return rate


def _file(text: str) -> Path:
    """Take a file that can be written, and see now whether it can."""
    path = Path(text)
    was_there = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from None
    if not was_there:
        path.unlink()
    return path


def _arguments() -> argparse.ArgumentParser:
    arguments = _Arguments(prog="python -m tests.soak", description=__doc__)
    arguments.add_argument(
        "--database", metavar="DATABASE", choices=["sqlite", "postgres", "both"], default="both",
        help="sqlite, postgres or both (default)",
    )  # fmt: skip
    arguments.add_argument(
        "--duration", metavar="DURATION", type=_seconds, default=3600.0,
        help=f"of all databases together, at least {_LEAST_S}s: 90s, 30m, 1h (default); crash points come on top",
    )  # fmt: skip
    arguments.add_argument("--seed", metavar="SEED", type=_whole, help="repeats what another soak has injected")
    arguments.add_argument(
        "--every-write", metavar="EVERY_WRITE", type=_each, default=1,
        help="of SQLite's crash points try each N-th (default 1, some five minutes on top of DURATION; 0: none)",
    )  # fmt: skip
    arguments.add_argument("--rate", type=_rate, default=RATE, help="runs started in a second (default %(default)g)")
    arguments.add_argument("--json", type=_file, metavar="FILE", help="where the figures go as well")
    arguments.add_argument("--keep", action="store_true", help="keep databases and logs, even if nothing was lost")
    return arguments


def _say(line: str) -> None:
    print(line, flush=True)


class _Soak:
    """All that is asked for, one after the other."""

    def __init__(self, given: argparse.Namespace, interruption: Interruption) -> None:
        self._given = given
        self._interruption = interruption
        self._kinds = ["sqlite", "postgres"] if given.database == "both" else [given.database]
        seed = secrets.randbelow(2**32) if given.seed is None else given.seed
        began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self.report = Report(seed, given.duration, given.rate, began)
        self.folders: list[Path] = []
        """Those that are still there."""

    def run(self) -> None:
        """Do it."""
        _say(f"seed {self.report.seed}; repeat it with SEED={self.report.seed}")
        if "sqlite" in self._kinds:
            self._try_crash_points()
        for kind in self._kinds:
            if self._interruption.is_wanted():
                self.report.not_tried.append(f"the soak of {kind}")
            else:
                self._soak(kind)
        self.report.is_interrupted = self._interruption.is_wanted()

    def _folder(self, what: str) -> Path:
        self.folders.append(Path(tempfile.mkdtemp(prefix=f"action-retrier-soak-{what}-")))
        return self.folders[-1]

    def _let_go(self, folder: Path) -> None:
        if not self._given.keep:
            shutil.rmtree(folder)
            self.folders.remove(folder)

    def _try_crash_points(self) -> None:
        every = self._given.every_write
        name = "SQLite's crash points"
        if not every or COMPILER is None:
            why = "no C compiler" if every else "left out by EVERY_WRITE=0"
            self.report.not_tried.append(f"{name} ({why})")
            _say(f"NOT tried: {name} ({why})")
            return
        folder = self._folder("writes")
        _say(
            f"{name}, each write and fsync of a run's life: the process dies there, or the call fails. {GROUPS} groups of"
            f" them, some five minutes on top of DURATION; EVERY_WRITE=0 leaves them out. In {folder}"
        )
        writes = every_write(folder, every=every, say=_say, is_stopped=self._interruption.is_wanted)
        self.report.writes = writes
        if every > 1:
            self.report.not_tried.append(f"{name} but for each {every}th (EVERY_WRITE={every})")
        if not writes.is_whole:
            self.report.not_tried.append(f"{GROUPS - writes.groups} of {GROUPS} groups of {name}")
        _say(f"\n{writes.table()}\n")
        if not writes.failed:
            self._let_go(folder)

    def _soak(self, kind: str) -> None:
        folder = self._folder(kind)
        _say(f"{kind}: in {folder}")
        evidence = soak(
            kind, folder, seed=self.report.seed, duration_s=self._given.duration / len(self._kinds),
            rate=self._given.rate, say=_say, is_stopped=self._interruption.is_wanted,
        )  # fmt: skip
        self.report.soaks.append(evidence)
        _say(f"\n{evidence.table()}\n")
        if evidence.is_clean:
            self._let_go(folder)


def main() -> int:
    """Soak, and return whether anything was lost."""
    given = _arguments().parse_args()
    interruption = Interruption()
    interruption.heed()
    whole = _Soak(given, interruption)
    try:
        whole.run()
    except KeyboardInterrupt:
        where = ", ".join(map(str, whole.folders)) or "no folder"
        print(f"ended at once, nothing was judged; what there is, is in {where}", flush=True)
        os._exit(EXIT_CODE)  # whoever still waits for a database is not waited for
    if given.json is not None:
        given.json.write_text(json.dumps(whole.report.as_json(), indent=2) + "\n")
    _say(whole.report.verdict)
    for folder in whole.folders:
        _say(f"databases and logs are in {folder}")
    if not whole.report.is_clean:
        return 1
    return EXIT_CODE if whole.report.is_interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
