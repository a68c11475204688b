"""A storm of kills over a fleet at work: nothing is lost, callbacks count once, and recovery is quick."""

import statistics

import pytest
from crash_processes import eventually
from crash_storm import storm

pytestmark = [pytest.mark.crash, pytest.mark.storm, pytest.mark.timeout(240)]

RUNS = 2000
KILLS = 50
MAX_S = 13


def test_a_storm_of_kills_loses_nothing(scene, capsys):
    eventually(scene.database.tells_death)

    result = storm(scene, runs=RUNS, kills=KILLS, within_s=90)

    with capsys.disabled():
        print(f"\n{scene.database.kind} {result.table()}")
    assert len(result.stories) == RUNS
    assert {story.row["state"] for story in result.stories.values()} == {"succeeded"}
    assert len(result.recoveries_s) >= KILLS
    assert statistics.median(result.recoveries_s) <= scene.database.death_shows_s
    assert max(result.recoveries_s) <= MAX_S
