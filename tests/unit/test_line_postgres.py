"""The line to PostgreSQL that hears of notifications: what its thread does about a connection that others replace."""

import threading
from types import SimpleNamespace
from typing import Any

from action_retrier.drivers.postgres.line import Line


def test_what_was_replaced_while_its_thread_waited_is_not_looked_at() -> None:
    """What woke the thread was said of the old connection; whoever opened the new one has told everybody already."""
    line: Any = object.__new__(Line)
    line._lock = threading.RLock()
    told: list[str] = []
    line._open = lambda: told.append("opened")
    line._heard = lambda: told.append("heard")
    line._locks, line._held = {1}, set()
    line._take = lambda _connection, key: told.append(f"took {key}")
    old, new = SimpleNamespace(closed=False), SimpleNamespace(closed=False, pgconn=None)
    line._connection = new

    line._look(old)

    assert told == []
    assert line._connection is new
