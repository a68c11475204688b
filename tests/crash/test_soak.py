"""What `make soak` says of itself: nothing that was left out looks as if it had been tried."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..soak.evidence import Evidence
from ..soak.faults import Injector
from ..soak.fleet import Fleet
from ..soak.names import NAMES, key
from ..soak.page import page
from ..soak.plan import LAST, ROUNDS, Fault, Plan
from ..soak.report import Report
from ..soak.writes import Enumeration

ROOT = Path(__file__).resolve().parents[2]
MADE = Plan([(0, Fault("kill")), (1, Fault("kill")), (2, Fault("disk full"))], ends_s=60)


@pytest.fixture
def injector(scene):
    return Injector(Fleet(), scene.database, 2)


def report(*soaks, **about):
    return Report(7, 60.0, 120.0, "2030-01-01T00:00:00+00:00", soaks=[*soaks], **about)


def test_every_fault_has_a_name():
    kinds = {kind for share in (*ROUNDS.values(), *LAST.values()) for kind in share}

    assert kinds <= NAMES.keys()
    assert len({key(name) for name in NAMES.values()}) == len(NAMES)


def test_less_than_planned_is_not_clean(injector):
    injector.count.update({"kill": 1, "disk full": 1})
    evidence = Evidence("sqlite", 7, MADE, injector.fleet, injector, took_s=60)

    assert not evidence.is_clean
    assert "injected too little (SIGKILL of a worker: 1 of 2 (sqlite))" in report(evidence).verdict
    assert "| SIGKILL of a worker | 2 | 1 |" in evidence.table()


def test_an_execution_taken_from_the_living_is_not_clean(injector):
    """Whoever has died by its own run may have been found dead before the soak has noticed; nobody works after that."""
    evidence = Evidence("sqlite", 7, MADE, injector.fleet, injector, took_s=60)
    evidence._unexplained += [("of the dead", 11, 5_000_000), ("of the living", 12, 5_000_000), ("of one later", 13, 5)]
    injector.fleet.injuries[11].append((5_020_000, "own death"))
    injector.fleet.injuries[13].append((5_020_000, "own death"))
    evidence._last_sign_us.update({11: 4_990_000, 12: 4_990_000, 13: 4_990_000})

    evidence._judge_unexplained()

    assert evidence.taken_for_dead == ["of the living", "of one later"]
    assert not evidence.is_clean


def test_less_than_planned_is_clean_where_somebody_stopped_it(injector):
    evidence = Evidence("sqlite", 7, MADE, injector.fleet, injector, took_s=30, stopped_s=20)

    assert report(evidence, is_interrupted=True).verdict == "nothing was lost; stopped after 20 s of 60 s"
    assert "stopped after 20 s of 60 s" in evidence.table()


def test_what_cannot_be_injected_is_said(injector):
    injector.count["kill"] = 2
    injector.cannot["disk full"] = "no strace"
    evidence = Evidence("sqlite", 7, MADE, injector.fleet, injector, took_s=60)

    assert report(evidence).verdict == f"nothing was lost; NOT tried: {NAMES['disk full']} (no strace)"
    assert "NOT tried: no strace |" in evidence.table()


def test_a_crash_point_that_failed_is_not_clean():
    writes = Enumeration(failed=["a point"])

    assert report(writes=writes).verdict.startswith("NOT CLEAN: 1 crash points failed")


def test_the_page_shows_both_databases_side_by_side(injector):
    soaks = [Evidence(kind, 7, MADE, injector.fleet, injector, took_s=60) for kind in ("sqlite", "postgres")]
    for soak in soaks:
        soak.recoveries_s[NAMES["kill"]] += [0.5, 1.5]
    told = json.loads(json.dumps(report(*soaks, writes=Enumeration()).as_json()))

    shown = page(told)

    assert "|  | SQLite | PostgreSQL |" in shown
    assert f"| recovery after: {NAMES['kill']} | 2: 1.00, 1.50, 1.50 | 2: 1.00, 1.50, 1.50 |" in shown
    assert "| runs lost (I1) | 0 | 0 |" in shown


def test_programs_are_told_all_of_it_in_snake_case(injector):
    injector.count.update({"kill": 2, "disk full": 1})
    told = report(Evidence("sqlite", 7, MADE, injector.fleet, injector, took_s=60), writes=Enumeration()).as_json()

    def keys(value):
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            yield from keys(one)
        yield from value if isinstance(value, dict) else ()

    assert all(one == key(one) for one in keys(json.loads(json.dumps(told))))
    assert told["soaks"][0]["faults"]["kill"] == {"name": NAMES["kill"], "planned": 2, "injected": 2}


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("soak", "--duration 5", "DURATION="),
        ("soak", "--duration inf", "DURATION="),
        ("soak", "--rate 0", "SOAK_ARGS="),
        ("soak", "--seed x", "SEED="),
        ("soak", "--json /nowhere/at/all.json", "SOAK_ARGS="),
        ("simulation", "--seeds 0", "SEEDS="),
        ("simulation", "--seeds 9 --replay 7", "SEED="),
    ],
)
def test_what_cannot_be_done_is_said_at_once_in_a_line(module, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{module}", *arguments.split()],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
