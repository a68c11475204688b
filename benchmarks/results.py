"""
The raw results: one file of JSON, one entry a measurement, so that each can be taken again alone.

Its shape is described in ``README.md`` beside this file.
"""

import json
import re
from pathlib import Path
from typing import Any

SCHEMA = 1
Entry = dict[str, Any]


class Results:
    """The file. What is in it stays until it is measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        if path.exists():
            read = json.loads(path.read_text("utf-8"))
            if read.get("schema") != SCHEMA:
                raise ValueError(f"{path} has another schema: {read.get('schema')!r} instead of {SCHEMA}")
            self.entries = read["measurements"]

    def save(self, entry: Entry) -> None:
        """Put an entry in the place of the one of its name, on the disk as well, all or nothing."""
        self.entries[entry["name"]] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".half")
        half.write_text(as_text({"schema": SCHEMA, "measurements": self.entries}), "utf-8")
        half.replace(self.path)

    def rate(self, family: str, database: str, side: str) -> float | None:
        """Return the median rate of a side in a family, from whichever measurement has it."""
        for entry in self.entries.values():
            if entry["family"] == family and entry["complete"]:
                for which in ("ours", "theirs"):
                    one = entry[which]
                    if one and one["side"] == side and one["database"] == database:
                        rates = sorted(sample["rate"] for sample in one["samples"])
                        return float(rates[len(rates) // 2])
        return None


def is_kept(entry: Entry | None, source: str) -> bool:
    """Tell whether an entry is whole and of the code that is there now, and so need not be measured again."""
    return entry is not None and entry["complete"] and not entry["failed"] and entry["source"] == source


def as_text(value: Any) -> str:
    """Return JSON with a line for each field, and lists of numbers and samples on one."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text)
    return re.sub(r"\{\s+(\"(?:ms|rate|seconds|worker|rss_mb|cpu_ms|bare_us|wanted_rate)\": [^{}]*?)\s+\}",
                  lambda found: "{" + re.sub(r"\s+", " ", found[1]) + "}", text) + "\n"  # fmt: skip
