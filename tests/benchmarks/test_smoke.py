"""The whole of it, once and small: ours and the floor on SQLite. The other libraries are not CI's business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(tmp_path):
    """Run the benchmarks quickly, and return what they print and the results."""

    def run(*arguments):
        results = tmp_path / "results.json"
        command = [sys.executable, "-m", "benchmarks", "--quick", "--no-report", "--results", results, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(results.read_text())["measurements"]

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
def test_ours_and_the_floor_are_measured_on_sqlite_and_what_is_known_is_kept(bench):
    names = ["drain/sqlite/floor", "in-transaction/sqlite/sync"]
    chosen = [part for name in names for part in ("--only", name)]

    _, found = bench(*chosen, "--pairs", "1")
    printed, kept = bench(*chosen, "--pairs", "1")

    assert sorted(found) == sorted(names)
    assert {name: (one["complete"], one["failed"]) for name, one in found.items()} == dict.fromkeys(names, (True, None))
    assert found["drain/sqlite/floor"]["theirs"]["about"]["lacks"]
    assert printed.count("kept from") == len(names)
    assert kept == found
