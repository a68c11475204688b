"""What the crash tests share: a database with witnesses, real processes, and a fresh worker at the end."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from crash_scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A directory with a database in it, whose processes are gone when the test ends."""
    scene = Scene(tmp_path)
    yield scene
    scene.close()
