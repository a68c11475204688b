"""Opening a database, whichever: once, however many ask for it."""

import threading

import pytest

from action_retrier._ops.workers import list_workers
from action_retrier.testing import ManualClock

from ..stores import LIMIT_S, NAMESPACE, System, in_thread


class Turnstile:
    """A lock that nobody enters before two have come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._come = threading.Barrier(2)

    def __enter__(self) -> None:
        self._come.wait(LIMIT_S)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_two_threads_that_open_it_at_once_open_it_once(
    system: System, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second finds it open, and makes no second writer."""
    database = system.open(clock)
    database.close()
    made = []
    writer = system.writer
    with monkeypatch.context() as patch:
        patch.setattr(database, "_opening", Turnstile())

        def open_it() -> None:
            database.open()
            made.append(database._writer)  # type: ignore[attr-defined]

        ended = [in_thread(open_it) for _ in range(2)]
        for one in ended:
            one.result(LIMIT_S)

    assert made == [writer(database)] * 2
    assert database.read_sync(lambda: list_workers(NAMESPACE)) == []
