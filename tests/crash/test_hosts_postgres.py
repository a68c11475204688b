"""Workers on hosts of their own: they share the work, and take over what a host that has lost its link can not finish."""

import pytest
from crash_database import PostgresDatabase
from crash_processes import eventually
from crash_program import call

from ..support.network import NETWORK, hosts, under, why_not
from ..support.postgres_server import running_server

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(180)]

LEASE_S = 10
TAKEN_OVER_WITHIN_S = 13
"""The lease, and until somebody looks."""
LOCKS_GO_WITHIN_S = 16
"""Of a transaction in the middle of which the link was lost: ten seconds after its last sign of life."""


@pytest.fixture
def layout():
    """The name of the database's host, and two worker hosts."""
    problem = why_not()
    if problem:
        pytest.skip(problem)
    with hosts(2) as made:
        yield made


@pytest.fixture
def server(layout):
    hub, _ = layout
    with running_server(under=under(hub), welcome=NETWORK, listen_addresses="*") as server:
        yield server


@pytest.fixture
def database(server):
    return PostgresDatabase(server.url)


@pytest.fixture
def worker(scene, server):
    """Start a worker on a host."""
    scene.prepare()

    def start(host, *options):
        url = server.url_at(host.database)
        started = scene.processes.start("crash_program.py", url, "worker", *options, under=host.under)
        started.wait_for("worker")
        return started

    return start


def test_workers_on_two_hosts_share_the_work(scene, layout, worker):
    _, (one, two) = layout
    workers = [worker(one, "--concurrency", 5), worker(two, "--concurrency", 5)]

    scene.start(*[call("take 0.1") for _ in range(100)])
    scene.wait_until_complete()
    for each in workers:
        each.stop()

    by = [line.pid for line in scene.lines("begin")]
    assert len(by) == 100
    assert min(by.count(each.pid) for each in workers) >= 20
    assert {story.row["state"] for story in scene.verdict().values()} == {"succeeded"}


@pytest.mark.parametrize("action", ["work", "work_sync"])
def test_a_host_that_loses_its_link_loses_its_runs_and_its_late_reports_change_nothing(
    scene, layout, worker, action, capsys
):
    _, (one, two) = layout
    alone = worker(one)
    run_ids = scene.start(*[call("deaf", "return", action=action) for _ in range(5)])
    eventually(lambda: len(scene.lines("begin")) == 5)
    other = worker(two)

    one.unplug()
    cut_at_us = scene.now_us()
    scene.wait_until_complete(within_s=2 * TAKEN_OVER_WITHIN_S)
    before = [scene.row(run_id) for run_id in run_ids]
    again = [line.at_us - cut_at_us for line in scene.lines("begin") if line.pid == other.pid]
    one.plug_in()
    scene.release()
    alone.wait_for("worker", count=2)
    alone.wait_for_log("is superseded; ignored")
    (own,) = scene.start(call("return"))
    scene.wait_until_complete()
    alone.stop()
    other.stop()

    with capsys.disabled():
        print(f"\nlink lost: its runs began elsewhere after {min(again) / 1e6:.1f} to {max(again) / 1e6:.1f} s")
    stories = scene.verdict()
    assert [scene.row(run_id) for run_id in run_ids] == before
    assert [stories[run_id].losses for run_id in run_ids] == [1] * 5
    assert [stories[run_id].effects for run_id in run_ids] == [["success"]] * 5
    assert min(again) / 1e6 >= LEASE_S * 0.6
    assert max(again) / 1e6 <= TAKEN_OVER_WITHIN_S
    assert stories[own].row["state"] == "succeeded"


def test_a_link_that_dies_in_the_middle_of_a_callback_takes_its_row_locks_with_it(scene, layout, worker, capsys):
    """Nobody tells the server that this client is gone: it ends the transaction when it has heard nothing for too long."""
    _, (one, two) = layout
    alone = worker(one)
    run_id = scene.run("return", context=["deaf", "return"])
    eventually(lambda: scene.lines("callback", run_id))
    other = worker(two)

    one.unplug()
    cut_at_us = scene.now_us()
    scene.wait_until_complete(within_s=2 * LOCKS_GO_WITHIN_S)
    calls = scene.lines("callback", run_id)
    before = scene.row(run_id)
    one.plug_in()
    scene.release()
    alone.wait_for("worker", count=2)
    alone.stop()
    other.stop()

    waited_s = (calls[1].at_us - cut_at_us) / 1e6
    with capsys.disabled():
        print(f"\nlink lost in a callback: it was called elsewhere after {waited_s:.1f} s")
    assert [line.pid for line in calls] == [alone.pid, other.pid]
    assert waited_s <= LOCKS_GO_WITHIN_S
    assert scene.row(run_id) == before
    assert scene.verdict()[run_id].effects == ["success"]
