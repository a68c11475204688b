"""A run, or a callback, that kills its process must neither go on for ever nor take the others down with it."""

import secrets
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from crash_processes import LIMIT_S, eventually
from crash_program import call

pytestmark = pytest.mark.crash

INNOCENT = 10


@pytest.mark.parametrize("death", ["kill", "exit", "abort", "segfault"])
def test_a_run_that_kills_its_process_ends_as_failed(scene, death):
    """I8: each death is a failure. Then it is over, and its callback runs once."""
    scene.prepare()
    run_id = scene.run(death, max_failures=2)

    deaths = scene.supervise()
    story = scene.verdict()[run_id]

    assert (story.row["state"], story.row["error_type"], story.effects) == ("failed", "WorkerLost", ["failed"])
    assert (story.executions, deaths) == (3, 3)


CGROUPS = Path("/sys/fs/cgroup")
ENOUGH_MEMORY = 192 * 1024 * 1024
"""For a worker, and not much more."""
# The kernel's two versions of control groups; without a limit of its own, swap would take what is too much.
LIMITS = (
    (CGROUPS, {"memory.max": ENOUGH_MEMORY, "memory.swap.max": 0})
    if (CGROUPS / "cgroup.controllers").exists()
    else (CGROUPS / "memory", {"memory.limit_in_bytes": ENOUGH_MEMORY, "memory.memsw.limit_in_bytes": ENOUGH_MEMORY})
)


@pytest.fixture
def little_memory() -> Iterator[list[str]]:
    """What to start a program under so that the kernel kills it when it takes too much."""
    groups, limits = LIMITS
    group = groups / f"action-retrier-{secrets.token_hex(4)}"
    try:
        group.mkdir()
        (group / next(iter(limits))).touch()
    except OSError:
        pytest.skip(f"limiting a process's memory takes a control group that may be written to, in {groups}")
    for name, value in limits.items():
        if (group / name).exists():  # not every kernel counts swap
            (group / name).write_text(str(value))
    yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    group.rmdir()


def test_a_run_that_takes_all_the_memory_ends_as_failed(scene, little_memory):
    """The kernel kills its process, which cannot do anything about it."""
    scene.prepare()
    run_id = scene.run("devour", max_failures=1)
    deaths = 0
    while deaths < 2:
        worker = scene.processes.start("crash_program.py", scene.database.url, "worker", under=little_memory)
        assert worker.wait() == -9, worker.log.read_text()
        deaths += 1
    story = scene.finish()[run_id]

    assert (story.row["state"], story.row["error_type"], story.effects) == ("failed", "WorkerLost", ["failed"])
    assert story.executions == 2


@pytest.mark.parametrize("action", ["work", "work_sync"])
@pytest.mark.parametrize(("step", "most"), [("return", 1), ("take 0.02", 1), ("take 0.5", 2)])
def test_a_run_that_kills_its_process_costs_its_neighbours_one_attempt_each(scene, step, most, action):
    """
    A death makes suspects of all who were there; they are executed apart until it is known who it was.

    An innocent one that outlasts its probation may be there when the killer has its own: it loses one more.
    """
    scene.prepare()
    poison = call("kill", action=action, max_failures=2)
    half = [call(step, action=action) for _ in range(INNOCENT // 2)]
    run_ids = scene.start(*half, poison, *half)
    killer = run_ids.pop(len(half))

    deaths = scene.supervise(within_s=60)
    stories = scene.verdict()

    assert (stories[killer].row["state"], stories[killer].executions, deaths) == ("failed", 3, 3)
    assert {stories[run_id].row["state"] for run_id in run_ids} == {"succeeded"}
    assert max(stories[run_id].losses for run_id in run_ids) <= most


def test_runs_that_come_later_lose_at_most_two_attempts_to_a_killer(scene):
    """Work goes on beside suspects: it loses one attempt to them, and what outlasts its probation perhaps one more."""
    scene.prepare()
    killer = scene.run("kill", max_failures=3)
    worker = scene.worker()
    deaths = 0
    while deaths < 4:
        scene.start(*[call("take 0.2") for _ in range(3)])
        assert worker.wait() != 0
        deaths += 1
        worker = scene.worker()
    scene.wait_until_complete()
    worker.stop()
    stories = scene.verdict()

    assert (stories[killer].row["state"], stories[killer].executions) == ("failed", 4)
    assert max(story.losses for run_id, story in stories.items() if run_id != killer) <= 2


def test_two_killers_end_and_cost_their_neighbours_one_attempt_for_each(scene):
    scene.prepare()
    killers = scene.start(call("kill", max_failures=2), call("exit", max_failures=2))
    innocent = scene.start(*[call("take 0.05") for _ in range(INNOCENT)])

    scene.supervise(within_s=60)
    stories = scene.verdict()

    assert [stories[run_id].row["state"] for run_id in killers] == ["failed", "failed"]
    assert max(stories[run_id].losses for run_id in innocent) <= 2
    assert {stories[run_id].row["state"] for run_id in innocent} == {"succeeded"}


@pytest.mark.parametrize("callback", ["record", "record_async", "record_shared"])
def test_a_callback_that_kills_its_process_backs_off_and_others_go_on(scene, callback):
    """Its first death is a lost attempt of its run; from then on the callback is tried alone, less and less often."""
    scene.prepare()
    poison = scene.run("return", on_complete=callback, context=["kill", "kill", "kill", "kill", "return"])
    others = scene.start(*[call("return", on_complete=callback) for _ in range(INNOCENT)])

    deaths = scene.supervise(within_s=60)
    stories = scene.verdict()

    story = stories[poison]
    assert (story.row["state"], story.row["callback_tries"], story.effects) == ("succeeded", 4, ["success"])
    assert (deaths, story.losses, story.executions) == (4, 1, 2)
    calls = [line.at_us for line in story.lines if line.event == "callback"]
    waits = [later - earlier for earlier, later in pairwise(calls[1:])]
    assert [wait >= least for wait, least in zip(waits, (125_000, 250_000, 500_000), strict=True)] == [True] * 3
    # Two: where it takes longer than its probation to kill, another suspect may have started beside it.
    assert max(stories[run_id].losses for run_id in others) <= 2


def test_a_callback_that_always_kills_its_process_does_not_stop_other_runs(scene):
    scene.prepare()
    poison = scene.run("return", context=["kill"])
    supervised = scene.worker()
    supervised.wait()  # alone: else the others may be lost with it, and take until its death shows

    def keep_alive() -> None:
        nonlocal supervised
        if not supervised.is_running:
            supervised = scene.worker()

    rounds = 0
    while rounds < 5 or scene.row(poison)["callback_losses"] < 1:
        others = scene.start(*[call("raise", "return") for _ in range(INNOCENT)])
        within_s = LIMIT_S + 2 * scene.database.death_shows_s
        eventually(
            lambda others=others: keep_alive() or scene.are_complete(others),
            within_s=within_s,
            what="ten runs beside it",
        )
        rounds += 1

    assert (scene.row(poison)["state"], scene.row(poison)["callback_state"]) == ("succeeded", "pending")
    supervised.kill()
    stories = scene.check_halfway()
    assert max(story.losses for story in stories.values()) <= 2
    assert scene.lines("begin", poison)[-1].attempt == 2
