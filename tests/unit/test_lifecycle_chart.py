"""The page about the life of a run says what the code says."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from action_retrier._lifecycle import TRANSITIONS, Event, Outcome, State

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "lifecycle_chart.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("lifecycle_chart", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(tool):
    """If this fails: python tools/lifecycle_chart.py."""
    assert list(tool.differences(tool.PAGE.read_text("utf-8"))) == []


def test_check_says_so_without_writing():
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_page_that_is_out_of_date_is_seen(tool):
    stale = tool.PAGE.read_text("utf-8").replace("pending --> running: claim", "pending --> running: grab")

    assert "+    pending --> running: claim" in list(tool.differences(stale))


def test_a_page_without_its_marks_is_refused(tool):
    with pytest.raises(ValueError, match="'chart'"):
        tool.render("# The life of a run\n")


def test_the_chart_has_every_move_and_no_other(tool):
    moves = [line.strip() for line in tool.chart().splitlines() if "-->" in line]

    assert len(moves) == len(TRANSITIONS) + 1  # and the start
    assert all(str(state) in tool.chart() for state in State)
    assert all(f": {event}" in tool.chart() for event in Event)


def test_the_table_asks_about_every_outcome(tool):
    assert {type(outcome) for outcome in tool.OUTCOMES.values()} == set(Outcome.__args__)
