"""
Let everything go wrong for as long as wanted, and see that nothing is lost.

``make soak DATABASE=postgres DURATION=30m SEED=7``: the same seed injects the same faults in the same order.
"""

import argparse
import json
import re
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from .storm import RATE, soak
from .writes import COMPILER, every_write

_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Read a duration: ``90``, ``90s``, ``30m``, ``2h``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 30m or 2h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def main() -> int:
    """Soak, and return whether anything was lost."""
    arguments = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    arguments.add_argument("--database", choices=["sqlite", "postgres", "both"], default="both")
    arguments.add_argument("--duration", type=seconds, default=3600.0, help="of all together: 90s, 30m, 1h (default)")
    arguments.add_argument("--seed", type=int, help="repeats what another soak has injected")
    arguments.add_argument("--rate", type=float, default=RATE, help="runs started in a second (default %(default)g)")
    arguments.add_argument(
        "--every-write", type=int, default=1, metavar="N", help="of SQLite's crash points try each N-th (0: none)"
    )
    arguments.add_argument("--json", type=Path, metavar="FILE", help="where the figures go as well")
    arguments.add_argument("--keep", action="store_true", help="keep databases and logs, even if nothing was lost")
    given = arguments.parse_args()
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    kinds = ["sqlite", "postgres"] if given.database == "both" else [given.database]
    print(f"seed {seed}; repeat it with SEED={seed}", flush=True)
    all_evidence = []
    failed = []
    if "sqlite" in kinds and given.every_write and COMPILER is not None:
        folder = Path(tempfile.mkdtemp(prefix="action-retrier-soak-writes-"))
        print(f"each write of a run's life on SQLite: in {folder}", flush=True)
        writes = every_write(folder, every=given.every_write, say=lambda line: print(line, flush=True))
        failed = writes.failed
        print(f"\n{writes.table()}\n", flush=True)
        if not failed and not given.keep:
            shutil.rmtree(folder)
    for kind in kinds:
        folder = Path(tempfile.mkdtemp(prefix=f"action-retrier-soak-{kind}-"))
        print(f"{kind}: in {folder}", flush=True)
        evidence = soak(
            kind, folder, seed=seed, duration_s=given.duration / len(kinds), rate=given.rate,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
        all_evidence.append(evidence)
        print(f"\n{evidence.table()}\n", flush=True)
        if evidence.is_clean and not given.keep:
            shutil.rmtree(folder)
    if given.json is not None:
        given.json.write_text(json.dumps([evidence.as_json() for evidence in all_evidence], indent=2) + "\n")
    clean = not failed and all(evidence.is_clean for evidence in all_evidence)
    print("nothing was lost" if clean else "NOT CLEAN: see above", flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
