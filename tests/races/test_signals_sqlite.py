"""A signal's handler that raises while its thread, in its own turn, writes to SQLite."""

import functools
import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest

from action_retrier.errors import DatabaseUnavailable

from ..stores import LIMIT_S, Store, in_thread
from .signals import interrupted, raise_signal
from .turns import exists, start

_PROCESS = """
import fcntl, sys
with open(sys.argv[1], "r+") as gate:
    for _ in sys.stdin:
        try:
            fcntl.lockf(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(gate, fcntl.LOCK_UN)
            print("free", flush=True)
        except OSError:
            print("taken", flush=True)
"""


@pytest.fixture
def others(store: Store) -> Iterator["subprocess.Popen[str]"]:
    """Another process, which looks at the gate whenever it is asked to."""
    store.database.write_sync(start(store)[1])
    command = [sys.executable, "-c", _PROCESS, f"{store.database.location}-gate"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def gate_seen_by(process: "subprocess.Popen[str]") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_signal_may_interrupt_a_start_at_any_moment(store: Store, others: "subprocess.Popen[str]") -> None:
    """Whoever writes next, here or in another process, finds nobody at it; what was begun is there once or not at all."""
    for moment in itertools.count(1):
        _, make = start(store)
        if not interrupted(moment, functools.partial(store.database.write_sync, make), raise_signal):
            break
        assert gate_seen_by(others) == "free", moment
        assert in_thread(store.database.write_sync, start(store)[1]).result(LIMIT_S), moment

    assert moment > 100
    assert len(store.system.table("runs")) > moment


def test_a_handler_that_writes_is_refused_where_it_would_wait_for_itself(store: Store) -> None:
    """Between the beginning of a write and its end; before and after that, it writes as ever."""
    refused, written = [], []

    def handle() -> None:
        try:
            written.append(store.database.write_sync(start(store)[1], patience_s=LIMIT_S))
        except DatabaseUnavailable as error:
            refused.append(error.problem)

    def check() -> None:
        for moment in itertools.count(1):
            run_id, make = start(store)
            if not interrupted(moment, functools.partial(store.database.write_sync, make), handle):
                return
            assert exists(store, run_id), moment

    store.database.write_sync(start(store)[1])
    in_thread(check).result(LIMIT_S)

    assert len(refused) > 50
    assert len(written) > 10
    assert all("handler" in problem for problem in refused)
