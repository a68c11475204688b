"""A network that is slow, that breaks, and that swallows everything without a word."""

from urllib.parse import urlsplit

import pytest
from crash_processes import eventually
from crash_program import Program, call
from postgres_proxy import Proxy

pytestmark = pytest.mark.crash

CUTS = 30
LEASE_S = 10
TAKEN_OVER_WITHIN_S = 15


@pytest.fixture
def proxy(scene):
    scene.prepare()
    with Proxy(urlsplit(scene.database.url).port) as proxy:
        yield proxy


@pytest.fixture
def url(scene, proxy):
    """The URL that leads through the proxy."""
    return urlsplit(scene.database.url)._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()


@pytest.fixture
def program(scene, proxy, url):
    program = Program(url, scene.folder)
    with program.app:
        yield program
        proxy.flow()
    program.close()


def some_calls(count):
    callbacks = [None, "record", "record_async", "record_shared"]
    return [call("raise", "return", on_complete=callbacks[number % 4]) for number in range(count)]


def test_a_slow_network_costs_time_and_nothing_else(scene, proxy, program):
    proxy.latency_s = 0.02
    with program.app.worker():
        scene.started += program.start(some_calls(8))
        scene.wait_until_complete()

    assert [story.executions for story in scene.verdict().values()] == [2] * 8


def test_connections_that_break_all_the_time_lose_nothing_and_repeat_nothing(scene, proxy, program):
    """All of them, whatever they are in the middle of."""
    with program.app.worker():
        for _ in range(CUTS):
            scene.started += program.start(some_calls(8))
            proxy.cut()
        scene.wait_until_complete()

    stories = scene.verdict()
    assert len(stories) == 8 * CUTS
    assert {(story.row["state"], story.executions) for story in stories.values()} == {("succeeded", 2)}


@pytest.mark.slow
@pytest.mark.parametrize("callback", [False, True])
def test_a_network_that_swallows_everything_costs_a_worker_its_runs_and_nothing_more(
    scene, proxy, url, callback, capsys
):
    """No connection ends, so that nothing but a deadline of one's own tells that anything is wrong."""
    alone = scene.processes.start("crash_program.py", url, "worker")
    alone.wait_for("worker")
    run_id = scene.run("return", context=["deaf", "return"]) if callback else scene.run("deaf", "return")
    eventually(lambda: scene.lines("callback" if callback else "begin", run_id))
    other = scene.worker()
    other.wait_for("worker")

    proxy.swallow()
    swallowed_at_us = scene.now_us()
    scene.wait_until_complete(within_s=2 * TAKEN_OVER_WITHIN_S)
    before = scene.row(run_id)
    again = scene.lines("begin", run_id)[-1]
    scene.release()
    proxy.flow()
    alone.wait_for("worker", count=2)
    (own,) = scene.start(call("return"))
    scene.wait_until_complete()
    alone.stop()
    other.stop()

    with capsys.disabled():
        print(f"\neverything swallowed: the run began elsewhere after {(again.at_us - swallowed_at_us) / 1e6:.1f} s")
    assert scene.row(run_id) == before
    stories = scene.verdict()
    assert again.pid == other.pid
    assert (again.at_us - swallowed_at_us) / 1e6 <= TAKEN_OVER_WITHIN_S
    assert stories[run_id].effects == stories[own].effects == ["success"]
