"""Where a worker looks for due runs, and how often it may look everywhere."""

import json
from typing import Any

import pytest

from action_retrier._lanes import Lanes
from action_retrier._pace import Pace


def lane(since: int, action: str = "charge", priority: int = 0) -> dict[str, Any]:
    return {"queue": "default", "action": action, "on_complete": "", "priority": priority, "since": since}


def run(due_at: int, action: str = "charge", priority: int = 0) -> dict[str, Any]:
    return {"queue": "default", "action": action, "on_complete": "", "priority": priority, "due_at": due_at}


def test_what_is_quick_may_be_done_again_at_once():
    pace = Pace()
    assert pace.is_due(0)

    pace.took(0, 0.049)

    assert pace.is_due(0.049)
    assert pace.rest_s(0.049) == 0


@pytest.mark.parametrize("duration_s", [0.05, 0.1, 0.2])
def test_what_is_slow_takes_a_twentieth_of_the_time(duration_s):
    pace = Pace()
    pace.took(10, 10 + duration_s)

    assert pace.rest_s(10 + duration_s) == pytest.approx(19 * duration_s)
    assert not pace.is_due(10 + 19.9 * duration_s)
    assert pace.is_due(10 + 20.1 * duration_s)


def test_what_is_very_slow_is_done_every_five_seconds_all_the_same():
    """It may have been slow because of something else, and what it would find is waiting."""
    pace = Pace()
    pace.took(10, 12)

    assert pace.rest_s(12) == 5


def test_lanes_are_what_looks_have_found():
    """One that is empty now is remembered: the retry of what was claimed from it will come to it."""
    lanes = Lanes()
    lanes.found(json.dumps([lane(5), lane(7, "mail")]))
    lanes.found(json.dumps([lane(9, "mail"), lane(9, "mail", 3)]))

    assert json.loads(lanes.to_json()) == [lane(5), lane(9, "mail"), lane(9, "mail", 3)]


def test_lanes_are_not_remembered_without_end():
    """Somebody may use each number as a priority once."""
    lanes = Lanes()
    for priority in range(101):
        lanes.found(json.dumps([lane(5, priority=priority)]))
    lanes.found(json.dumps([lane(6)]))

    assert json.loads(lanes.to_json()) == [lane(6)]


def test_what_is_claimed_moves_the_beginning_of_its_lane():
    """As far as the last run that was claimed, and never back: others that are due at the same instant are still there."""
    lanes = Lanes()
    lanes.found(json.dumps([lane(5), lane(5, "mail")]))

    lanes.took([run(6), run(9), run(8)])
    lanes.took([run(3)])

    assert json.loads(lanes.to_json()) == [lane(9), lane(5, "mail")]


@pytest.mark.parametrize("told", [None, "[]"])
def test_nothing_found_is_no_lane(told):
    lanes = Lanes()
    lanes.found(told)

    assert lanes.to_json() == "[]"
