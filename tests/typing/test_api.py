"""The typed sample of user code: accepted as it is, and refused where it says so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("api.py")
ROOT = SAMPLE.parents[2]
IGNORE = re.compile(r"  # type: ignore\[([\w-]+)\]$")


def mypy(path: Path) -> list[str]:
    """Return what mypy, as strict as the project has it, finds wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", "--no-pretty", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if ": note: " not in line]


@pytest.fixture(autouse=True)
def mypy_is_there() -> None:
    pytest.importorskip("mypy")


@pytest.mark.timeout(300)
def test_the_sample_is_accepted_and_every_ignore_in_it_is_needed() -> None:
    """What users type is known to type checkers: return types, `bind`, options, both colours of contexts."""
    assert mypy(SAMPLE) == []


@pytest.mark.timeout(300)
def test_without_its_ignores_the_sample_is_refused_line_by_line(tmp_path: Path) -> None:
    """A wrong, missing or unknown argument is found where it stands: of `bind`, of a call, of an option."""
    lines = SAMPLE.read_text("utf-8").splitlines()
    expected = {(number, found[1]) for number, line in enumerate(lines, 1) if (found := IGNORE.search(line))}
    assert len(expected) >= 5
    bare = tmp_path / "bare.py"
    bare.write_text("\n".join(IGNORE.sub("", line) for line in lines) + "\n", "utf-8")

    errors = [re.search(r":(\d+): error: .*\[([\w-]+)\]$", line) for line in mypy(bare)]

    assert {(int(found[1]), found[2]) for found in errors if found} == expected
    assert None not in errors
