"""Everything goes wrong for a while, as in `make soak`: nothing is lost, callbacks count once, and work goes on."""

import random
import statistics

import pytest

from ..soak.plan import plan
from ..soak.storm import soak

pytestmark = [pytest.mark.crash, pytest.mark.storm, pytest.mark.timeout(400)]

RATE = 60
RECOVERED_S = 5
"""Half of what a death has cut off begins again within that."""
RESUMED_S = 2
INJECTED = {
    "sqlite": {"SIGKILL of a worker": 11, "SIGSTOP of a worker, past its lease": 2},
    "postgres": {
        "SIGKILL of a worker": 12,
        "SIGSTOP of a worker, past its lease": 2,
        "crash of the server (SIGKILL of a backend)": 4,
        "partition, longer than the lease": 1,
    },
}


@pytest.mark.parametrize("duration_s", [45, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_soak_loses_nothing(kind, duration_s, tmp_path, capsys):
    judge(soak(kind, tmp_path, seed=random.randrange(2**32), duration_s=duration_s, rate=RATE), duration_s, capsys)


def judge(evidence, duration_s, capsys):
    with capsys.disabled():
        print(f"\n{evidence.table()}")
    assert evidence.is_clean, evidence.table()
    assert evidence.taken_for_dead == []
    for name, count in INJECTED[evidence.kind].items():
        assert evidence.injected[name] >= count, name
    assert evidence.recoveries_s["SIGKILL of a worker"], "work that was cut off has begun again"
    assert statistics.median(evidence.recoveries_s["SIGKILL of a worker"]) <= RECOVERED_S
    if evidence.kind == "postgres":
        assert statistics.median(evidence.resumptions_s) <= RESUMED_S, (
            "work goes on when the server accepts connections"
        )


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_seed_makes_a_plan_and_nothing_else_does(kind):
    assert plan(kind, 7, 1800) == plan(kind, 7, 1800)
    assert plan(kind, 7, 1800) != plan(kind, 8, 1800)


def test_half_an_hour_has_what_was_promised():
    """`docs/reliability.md` tells of so many of each."""
    kinds = [fault.kind for _, fault in plan("postgres", 1, 1800).faults]
    lost = sum(fault.amount for _, fault in plan("postgres", 1, 1800).faults if fault.kind == "lose answers")

    assert kinds.count("kill") >= 300
    assert kinds.count("stop") >= 50
    assert kinds.count("crash") >= 100
    assert kinds.count("partition") >= 20
    assert lost >= 1000
    assert [fault.kind for _, fault in plan("sqlite", 1, 1800).faults].count("kill") >= 300
    assert [fault.kind for _, fault in plan("sqlite", 1, 1800).faults].count("stop") >= 50
