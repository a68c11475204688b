"""What the tests of forks and exits have in common: a short program in a process of its own, which has an App."""

import subprocess
import sys
import textwrap

import pytest
from crash_scene import Scene

LIMIT_S = 20
BEGIN = """
import os, signal, sys, threading, time
from action_retrier import App, DatabaseUnavailable, SyncActionRetrier

app = App({url!r})
retrier = SyncActionRetrier(app)

def hold(seconds):
    held = threading.Event()
    def work():
        with app.transaction():
            held.set()
            time.sleep(seconds)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    held.wait()
    return thread
"""


class Programs:
    """Runs short programs on a scene's database."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __call__(self, program: str) -> "subprocess.CompletedProcess[str]":
        """Run one, and return how it ended."""
        text = BEGIN.format(url=self._scene.database.url) + textwrap.dedent(program)
        try:
            return subprocess.run(
                [sys.executable, "-c", text],
                check=False,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                cwd=self._scene.folder,
            )
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"it does not end: {error.stdout!r} {error.stderr!r}")
