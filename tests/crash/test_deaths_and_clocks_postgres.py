"""How soon a death is noticed on PostgreSQL, and that no worker's clock matters."""

import statistics
from pathlib import Path

import pytest
from crash_database import PostgresDatabase
from crash_processes import eventually
from crash_program import Program

from ..stores import with_query
from ..support.pgbouncer import POOLED

pytestmark = pytest.mark.crash

DEATHS = 5
MEDIAN_S = 2.0
BY_LEASE_S = 11.5
"""The lease, and until somebody looks."""
LATER_MS = 4000
NOT_LATER_THAN_S = 15  # the clocks are wrong by a day; libfaketime itself has threads oversleep by seconds
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def after_a_death_s(scene, database):
    """Kill a worker that executes a run; return how long it takes until another one executes it."""
    run_id = scene.run("hold", "return")
    victim = scene.processes.start("crash_program.py", database.url, "worker")
    scene.wait_for_executions(run_id, 1)
    other = scene.processes.start("crash_program.py", database.url, "worker")
    other.wait_for("worker")

    killed_at_us = victim.kill()
    again = scene.wait_for_executions(run_id, 2)
    scene.wait_until_complete()
    other.stop()
    return (again.at_us - killed_at_us) / 1e6


@pytest.mark.slow
def test_a_dead_workers_runs_start_again_within_two_seconds(scene, database, capsys):
    scene.prepare()
    eventually(database.tells_death)

    times = sorted(after_a_death_s(scene, database) for _ in range(DEATHS))

    with capsys.disabled():
        print(f"\n{DEATHS} deaths on direct connections: {', '.join(f'{time:.2f} s' for time in times)}")
    assert statistics.median(times) <= MEDIAN_S
    assert max(times) <= BY_LEASE_S


@pytest.mark.slow
def test_a_dead_workers_runs_start_again_after_its_lease_where_there_is_no_lock_to_look_at(scene, database, capsys):
    scene.prepare()

    took_s = after_a_death_s(scene, PostgresDatabase(with_query(database.url, POOLED)))

    with capsys.disabled():
        print(f"\na death that only the lease tells: {took_s:.2f} s")
    assert took_s <= BY_LEASE_S


def faking(offset):
    """Return what a program is put under whose wall clock is wrong; how fast time passes for it is right."""
    return ["env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME={offset}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (on Debian: apt install libfaketime)")
def test_workers_whose_clocks_are_a_day_wrong_start_nothing_early_and_nothing_late(scene):
    """Due times, backoff and deadlines are by the server's clock, whoever starts a run and whoever executes it."""
    scene.prepare()
    workers = [
        scene.processes.start("crash_program.py", scene.database.url, "worker", "--queue", queue, under=faking(offset))
        for queue, offset in (("ahead", "+1d"), ("behind", "-1d"))
    ]
    for worker in workers:
        worker.wait_for("worker")
    program = Program(scene.database.url, scene.folder)
    with program.app:
        asked_at_us = scene.now_us()
        for queue in ("ahead", "behind"):
            for later_ms in (0, LATER_MS):
                scene.started.append(
                    program.retrier.run_after(
                        program.app,
                        later_ms,
                        "work",
                        {"script": ["raise", "return"]},
                        queue=queue,
                        initial_backoff_ms=500,
                        max_backoff_ms=500,
                        deadline_ms=60_000,
                        jitter=0,
                    )
                )
    program.close()
    scene.wait_until_complete()
    for worker in workers:
        worker.stop()

    stories = scene.verdict()
    for number, run_id in enumerate(scene.started):
        due_s = LATER_MS / 1000 if number % 2 else 0
        begun = [line.at_us for line in stories[run_id].lines if line.event == "begin"]
        assert len(begun) == 2, f"I7: due by the server's clock, and begun then: {stories[run_id].row}"
        first, second = begun
        assert due_s <= (first - asked_at_us) / 1e6 <= due_s + NOT_LATER_THAN_S
        assert 0.5 <= (second - first) / 1e6 <= 0.5 + NOT_LATER_THAN_S
        assert stories[run_id].row["state"] == "succeeded"


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (on Debian: apt install libfaketime)")
@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_a_run_that_a_program_with_a_wrong_clock_starts_is_due_at_once(scene, offset):
    scene.prepare()
    starter = scene.processes.start("crash_program.py", scene.database.url, "start", "return", under=faking(offset))
    assert starter.wait() == 0
    scene.started += starter.said("started")

    assert [story.executions for story in scene.finish().values()] == [1]
