"""
A process dies at the n-th write, fsync, truncation or removal that it asks the system for, or that fails: at each of them.

Needs a C compiler, for what is preloaded into the process: see tests/support/crash_syscalls.c.
"""

import random

import pytest

from ..soak.writes import COMPILER, every_write

pytestmark = [
    pytest.mark.crash,
    pytest.mark.storm,
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
]

SAMPLED = 25
"""Of so many, one."""


@pytest.mark.parametrize(
    "every", [SAMPLED, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)], id="each")]
)
def test_a_run_survives_whatever_happens_to_a_write_of_its_life(tmp_path, capsys, every):
    first = random.randint(1, every)

    found = every_write(tmp_path, every=every, first=first)

    with capsys.disabled():
        print(f"\n{found.table()}")
    assert found.failed == [], f"of each {every}, number {first}"
    assert found.points.total() > 600 / every
