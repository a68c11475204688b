"""A storm of kills over a fleet at work: nothing is lost, callbacks count once, and recovery is quick."""

import statistics

import pytest
from crash_processes import eventually
from crash_storm import storm

pytestmark = [pytest.mark.crash, pytest.mark.storm, pytest.mark.timeout(240)]

RUNS_FOR_EACH = 40
MAX_S = 13


@pytest.mark.parametrize("kills", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_a_storm_of_kills_loses_nothing(scene, capsys, kills):
    runs = kills * RUNS_FOR_EACH
    eventually(scene.database.tells_death)

    result = storm(scene, runs=runs, kills=kills, within_s=90)

    with capsys.disabled():
        print(f"\n{scene.database.kind} {result.table()}")
    assert len(result.stories) == runs
    assert {story.row["state"] for story in result.stories.values()} == {"succeeded"}
    assert len(result.recoveries_s) >= kills
    assert statistics.median(result.recoveries_s) <= scene.database.death_shows_s
    assert max(result.recoveries_s) <= MAX_S
