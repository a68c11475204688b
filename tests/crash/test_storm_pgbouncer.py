"""The soak of `make soak` behind PgBouncer, where nothing but the end of its lease tells a death."""

import random

import pytest

from ..soak.faults import Injector
from ..soak.plan import CLIENTS, WORKERS
from ..soak.storm import soak_at
from ..stores import SYSTEMS

pytestmark = [
    pytest.mark.crash,
    pytest.mark.storm,
    pytest.mark.timeout(400),
    pytest.mark.skipif("pgbouncer" not in SYSTEMS, reason="needs PgBouncer: see `make pgstorm`"),
]


def test_a_soak_behind_a_pooler_loses_nothing(scene, capsys):
    evidence = soak_at(
        scene,
        "pgbouncer",
        lambda fleet, lease_s: Injector(fleet, scene.database, lease_s),
        [scene.database.url] * (WORKERS + CLIENTS),
        seed=random.randrange(2**32),
        duration_s=45,
        rate=60,
    )

    with capsys.disabled():
        print(f"\n{evidence.table()}")
    assert evidence.is_clean, evidence.table()
    assert evidence.taken_for_dead == []
    assert evidence.injected["SIGKILL of a worker"] >= 12
    assert evidence.recoveries_s["SIGKILL of a worker"], "work that was cut off has begun again"
