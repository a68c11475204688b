"""The tests that the page on reliability names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def named() -> list[tuple[str, str]]:
    """Return (file, test) for each that is named: a file, a colon, and what its tests say, divided by commas."""
    found = []
    for cell in re.findall(r"[^|\n]+", PAGE.read_text("utf-8")):
        for file, sentences in re.findall(r"`([\w/]*test_\w+\.py)`: ([^;`.|]+)", cell):
            found += [(file, sentence.strip()) for sentence in sentences.split(", ")]
    return found


def test_the_tests_that_are_named_are_there() -> None:
    names = named()
    missing = [
        f"{file}: {sentence}"
        for file, sentence in names
        if f"def test_{sentence.replace(' ', '_')}(" not in (ROOT / "tests" / file).read_text("utf-8")
    ]

    assert len(names) > 100
    assert missing == []
