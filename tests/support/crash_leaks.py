"""A process that starts and executes runs, a great many of them, and says what it has in use meanwhile."""

import contextlib
import gc
import json
import sys
from pathlib import Path

import psutil
from crash_processes import eventually
from crash_program import Program, call, say

BATCH = 500
OWN_THREADS = 3
"""The main one, the writer's, and the one that watches for commits."""
THREADS_END_WITHIN_S = 15


def main() -> None:
    """Execute runs in rounds; say what is in use after each."""
    database, rounds, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    program = Program(database, Path.cwd())
    process = psutil.Process()
    with program.app:
        for _ in range(rounds):
            with program.app.worker() as worker:
                for _ in range(size // BATCH):
                    program.start(some_calls())
                    worker.until_idle()
                worker.until_idle()
            # Idle threads end by themselves, after some seconds.
            with contextlib.suppress(AssertionError):
                eventually(lambda: process.num_threads() <= OWN_THREADS, within_s=THREADS_END_WITHIN_S)
            gc.collect()
            in_use = {
                "memory": process.memory_full_info().uss,
                "threads": process.num_threads(),
                "descriptors": process.num_fds(),
                "blocks": sys.getallocatedblocks(),
            }
            say("in-use", json.dumps(in_use))


def some_calls() -> list:
    """Make up a batch: both colours, some that fail first, some that call back."""
    calls = [
        call("raise" if number % 10 == 0 else "return", "return", on_complete=None) for number in range(BATCH - 60)
    ]
    calls += [call("return", action="work_sync", on_complete=None) for _ in range(40)]
    calls += [call("return", on_complete="record_shared") for _ in range(18)]
    calls += [
        call("return", on_complete="record"),
        call("return", on_complete="record_async", context=["raise", "return"]),
    ]
    return calls


if __name__ == "__main__":
    main()
