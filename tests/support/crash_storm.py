"""A storm of kills over a fleet at work, and what it shows: nothing is lost, and how fast work goes on."""

import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from crash_oracle import Story
from crash_processes import Process, eventually
from crash_program import call
from crash_scene import Scene
from crash_witness import read_log

from action_retrier import Call

WORKERS = 4
CONCURRENCY = 10
LONG_S = 1


@dataclass
class Storm:
    """What was injected, and what was measured."""

    seed: int
    kills: int
    crashes: int = 0
    took_s: float = 0
    stories: dict[str, Story] = field(default_factory=dict)
    recoveries_s: list[float] = field(default_factory=list)
    """For each execution that a kill cut off, the time from the kill to the run's next execution."""
    resumptions_s: list[float] = field(default_factory=list)
    """For each crash of the server, the time from its accepting connections to the next execution's beginning."""
    outages_s: list[float] = field(default_factory=list)

    def table(self) -> str:
        """Return all of it, for people."""
        lines = [
            f"storm {self.seed}: {len(self.stories)} runs, {self.kills} workers killed, "
            f"{self.crashes} crashes of the server, in {self.took_s:.0f} s",
            f"  executions cut off        {len(self.recoveries_s):5}   next one after   {_figures(self.recoveries_s)}",
            f"  most losses of one run    {max(story.losses for story in self.stories.values()):5}",
        ]
        if self.crashes:
            lines += [
                f"  server away, from its crash to accepting       {_figures(self.outages_s)}",
                f"  work resumed, from then                        {_figures(self.resumptions_s)}",
            ]
        return "\n".join(lines)


def _figures(times_s: Iterable[float]) -> str:
    times = sorted(times_s)
    return f"p50 {statistics.median(times):.2f} s, p95 {times[int(len(times) * 0.95)]:.2f} s, max {times[-1]:.2f} s"


def some_call(rng: random.Random) -> Call:
    """Make up a run: what its action and its callback do, and in which colours."""
    takes = f"take {rng.uniform(0.01, 0.2):.3f}"
    script = rng.choice([["return"], [takes], [takes], ["raise", takes], ["raise", "raise", "return"]])
    callback = rng.choice([None, "record", "record", "record_async", "record_shared"])
    context = rng.choice([["return"], ["return"], ["raise", "return"]])
    action = rng.choice(["work", "work", "work_sync"])
    return call(*script, action=action, on_complete=callback, context=context, max_failures=50)


def executing(scene: Scene, workers: list[Process]) -> list[Process]:
    """Return those of the workers that execute something."""
    under_way: dict[int, set[str]] = {}
    for line in read_log(scene.folder):
        under_way.setdefault(line.pid, set())
        if line.event == "begin":
            under_way[line.pid].add(line.run_id)
        else:
            under_way[line.pid].discard(line.run_id)
    return [worker for worker in workers if under_way.get(worker.pid)]


def storm(
    scene: Scene, *, runs: int, kills: int, crashes: int = 0, crash: Callable[[], Any] | None = None, within_s: float
) -> Storm:
    """
    Start runs, kill workers that execute some, and let the server crash between; each crash adds a run.

    Args:
        crash: Kills the server, and returns when it accepts connections again.
        within_s: How long what is left in the end may take.
    """
    result = Storm(random.randrange(2**32), kills, crashes)
    rng = random.Random(result.seed)
    began_at = time.monotonic()
    scene.prepare()
    options = ("--concurrency", CONCURRENCY)
    workers = [scene.worker(*options) for _ in range(WORKERS)]
    killed_at_us: dict[int, int] = {}
    accepted_at_us = []

    for number in range(kills):
        for worker in workers:  # the next one dies when the fleet is whole again
            worker.wait_for("worker")
        # One that takes long, so that somebody is at work when we look, however fast the machine is.
        scene.start(call(f"take {LONG_S}", max_failures=50), *[some_call(rng) for _ in range(runs // kills - 1)])
        if crash is not None and number * crashes // kills != (number + 1) * crashes // kills:
            eventually(lambda: executing(scene, workers), what="somebody executes something")
            crashed_at = time.monotonic()
            crash()
            accepted_at_us.append(time.monotonic_ns() // 1000)
            result.outages_s.append(time.monotonic() - crashed_at)
            since = accepted_at_us[-1]
            scene.start(some_call(rng))  # whatever else there is may be waiting for a death to show
            eventually(lambda since=since: any(one.at_us > since for one in scene.lines("begin")), what="work resumed")  # type: ignore[misc]
        victim = rng.choice(eventually(lambda: executing(scene, workers), what="somebody executes something"))
        killed_at_us[victim.pid] = victim.kill()
        workers[workers.index(victim)] = scene.worker(*options)
        if number % 10 == 9:
            scene.check_halfway()
    scene.wait_until_complete(within_s=within_s)
    result.took_s = time.monotonic() - began_at
    for worker in workers:
        worker.stop()
    result.stories = scene.verdict()
    result.recoveries_s = _recoveries_s(result.stories, killed_at_us)
    begun = sorted(line.at_us for line in scene.lines("begin"))
    result.resumptions_s = [(next(at for at in begun if at > since) - since) / 1e6 for since in accepted_at_us]
    return result


def _recoveries_s(stories: dict[str, Story], killed_at_us: dict[int, int]) -> list[float]:
    times = []
    for story in stories.values():
        begun = [line for line in story.lines if line.event == "begin"]
        lost = {one["number"] for one in story.attempts if one["error_type"] == "WorkerLost"}
        times += [
            (again.at_us - killed_at_us[line.pid]) / 1e6
            for line, again in pairwise(begun)
            if line.attempt in lost and line.pid in killed_at_us
        ]
    return times
