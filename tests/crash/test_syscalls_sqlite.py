"""
A process is killed at the n-th system call of a kind: between any two of the things that it tells the disk.

Needs ``strace``, which lets a process die there without a change in its code.
"""

import shutil
import signal
import subprocess

import pytest
from crash_processes import eventually
from crash_program import call

TRACES = shutil.which("strace")
MAY_TRACE = (
    TRACES is not None and subprocess.run([TRACES, "-qq", "true"], capture_output=True, check=False).returncode == 0
)

pytestmark = [
    pytest.mark.crash,
    pytest.mark.slow,
    pytest.mark.skipif(not MAY_TRACE, reason="strace is missing, or may not trace here"),
]


def killed_at(system_call, nth):
    """Return what to start a program under, so that it dies there."""
    trace = ["--trace", system_call, "--inject", f"{system_call}:signal=KILL:when={nth}"]
    return [TRACES, "--daemonize", "--follow-forks", "-qq", "--output", "trace.txt", *trace]


@pytest.mark.parametrize(
    ("system_call", "nth"),
    [
        *(("pwrite64", nth) for nth in (1, 2, 3, 4, 6, 8, 12, 20, 30, 45, 60)),
        *(("fdatasync", nth) for nth in range(1, 9)),
        *(("ftruncate", nth) for nth in (1, 2)),
        *(("unlink", nth) for nth in (1, 2)),
    ],
)
def test_a_new_database_is_whole_or_empty_when_its_process_dies_at(scene, system_call, nth):
    process = scene.processes.start("crash_program.py", scene.database.url, "open", under=killed_at(system_call, nth))

    assert process.wait() == -signal.SIGKILL
    scene.prepare()
    run_id = scene.run("return")
    assert scene.finish()[run_id].row["state"] == "succeeded"


@pytest.mark.parametrize(
    ("system_call", "nth"),
    [
        *(("pwrite64", nth) for nth in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)),
        *(("fdatasync", nth) for nth in (1, 2, 3, 5, 8, 13, 21, 34)),
    ],
)
@pytest.mark.parametrize("checkpoints", ["seldom", "always"])
def test_runs_survive_a_worker_that_dies_at(scene, system_call, nth, checkpoints):
    """Among the claims, reports, callbacks and checkpoints of a handful of runs."""
    scene.prepare()
    scripts = [("return",), ("raise", "return"), ("return",), ("raise", "raise", "return")]
    scene.start(*[call(*script, context=["raise", "return"]) for script in scripts for _ in range(2)])
    always = ["--checkpoint-always"] if checkpoints == "always" else []

    worker = scene.processes.start(
        "crash_program.py", scene.database.url, *always, "worker", under=killed_at(system_call, nth)
    )
    eventually(lambda: not worker.is_running or scene.are_complete(scene.started), what="it died, or did it all")
    worker.kill()
    scene.check_halfway()
    stories = scene.finish()

    assert {story.row["state"] for story in stories.values()} == {"succeeded"}
