"""
The whole life of one run in one process: it is started, claimed, fails, is tried again, succeeds and calls back.

Reads orders, a line each, and does each in a forked child, so that a life costs no start of an interpreter:
``live FOLDER CALL HOW N`` has the N-th system call of a kind end or fail (see crash_syscalls.c), ``open`` likewise does no more
than to open a new database, ``judge FOLDER`` has a fresh worker finish what is left, and the oracle look at it.
"""

import ctypes
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from crash_database import SqliteDatabase
from crash_program import LOOK_S, Program, call, say
from crash_scene import Scene
from crash_told import Teller
from linearizability import UNKNOWN

from action_retrier import RetrierError
from action_retrier.drivers.sqlite import writer

T = TypeVar("T")
KEY = "life"
TAG = "life"
WITHIN_S = 40
_PR_SET_PDEATHSIG = 1
CUT_OFF, TOO_FEW = 10, 11
"""Exit codes of a life that has ended: something failed in it, or there were fewer than N calls."""


def insist(what: Callable[[], T], failed: Callable[[], object] = lambda: None) -> T:
    """Do something as a user does whom the database may fail: again, for a while."""
    give_up_at = time.monotonic() + WITHIN_S / 2
    while True:
        try:
            return what()
        except (RetrierError, sqlite3.Error, OSError):
            failed()
            if time.monotonic() > give_up_at:
                raise
            time.sleep(LOOK_S)


def database_in(folder: Path) -> SqliteDatabase:
    """Return the database of a life."""
    return SqliteDatabase(f"sqlite:///{folder / 'app.db'}")


def live(folder: Path) -> None:
    """Live it."""
    program = Program(database_in(folder).url, folder)
    teller = Teller(folder)
    app, retrier = program.app, program.retrier
    one = call("raise", "return", idempotency_key=KEY)
    one.args = {**(one.args or {}), "tag": TAG}

    def start() -> str:
        begun = teller.invoke("start", TAG, count=1, key=KEY)
        try:
            (run_id,) = program.start([one])
        except BaseException:
            teller.answer(begun, UNKNOWN)
            raise
        teller.answer(begun, [run_id])
        return run_id

    def work() -> None:
        with app.worker():
            run_id = insist(start)
            while True:
                run = insist(lambda: retrier.get(app, run_id))
                if run.completed_at is not None and run.callback.state == "done":
                    return
                time.sleep(LOOK_S)

    def run() -> None:
        with app:
            insist(work)

    insist(run)
    teller.close()


def open_new(folder: Path) -> None:
    """Open a database that is not there yet."""
    program = Program(database_in(folder).url, folder)

    def look() -> None:
        with program.app:
            program.start([])

    insist(look)


def judge(folder: Path) -> None:
    """Have everything end, and ask the oracle."""
    scene = Scene(folder, database_in(folder))
    scene.prepare()
    scene.start(call("raise", "return"))
    program = scene.here()
    with program.app, program.app.worker():
        deadline = time.monotonic() + WITHIN_S
        while scene.count(
            "SELECT count(*) FROM action_retrier_runs WHERE completed_at IS NULL OR callback_state = 'pending'"
        ):
            assert time.monotonic() < deadline, scene.rows("SELECT * FROM action_retrier_runs")
            time.sleep(LOOK_S)
        while scene.count("SELECT count(*) FROM action_retrier_workers") > 1:
            assert time.monotonic() < deadline, scene.rows("SELECT * FROM action_retrier_workers")
            time.sleep(LOOK_S)
    stories = scene.verdict()
    assert {story.row["state"] for story in stories.values()} == {"succeeded"}, stories
    scene.close()


def in_child(order: str, folder: Path, arguments: list[str]) -> int:
    """Do what an order says; return the exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(folder)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if order == "judge":
        judge(folder)
        return 0
    system_call, how, nth, checkpoints = arguments
    if checkpoints == "always":
        writer._CHECKPOINT_BYTES = writer._CHECKPOINT_PAUSE_S = 0
    shim = ctypes.CDLL(None)
    shim.crash_arm(system_call.encode(), how.encode(), ctypes.c_long(int(nth)), str(folder / "app.db").encode())
    (live if order == "live" else open_new)(folder)
    shim.crash_count.restype = ctypes.c_long
    return CUT_OFF if shim.crash_count() >= int(nth) else TOO_FEW


def main() -> None:
    """Take orders."""
    say("ready")
    for line in sys.stdin:
        order, folder, *arguments = line.split()
        child = os.fork()
        if child == 0:
            threading.Timer(2 * WITHIN_S, lambda: os.kill(os.getpid(), signal.SIGABRT)).start()
            try:
                code = in_child(order, Path(folder), arguments)
            except BaseException:  # noqa: BLE001 - whatever it is, it is told by the exit code
                traceback.print_exc()
                code = 1
            os._exit(code)
        _, status = os.waitpid(child, 0)
        say("ended", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
