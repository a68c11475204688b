"""Run every example as a reader would: from an empty directory, by its own asserts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
TIMEOUT_S = 60


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", [pytest.param(path, id=path.name) for path in EXAMPLES])
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    """It ends well, without a warning, and what it says it shows is what happened."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACTION_RETRIER_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("example", [pytest.param(path, id=path.name) for path in EXAMPLES])
def test_an_example_says_and_asserts_what_it_shows(example: Path) -> None:
    """It begins with its story, and a promise that does not hold fails it."""
    source = example.read_text("utf-8")

    assert source.startswith('"""')
    assert "    assert " in source
