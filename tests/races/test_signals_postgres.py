"""A signal's handler that raises while its thread, in its own turn, writes to PostgreSQL."""

import functools
import itertools
from typing import Any

from action_retrier._ops.starts import start_runs

from ..stores import LIMIT_S, NAMESPACE, Store, in_thread
from .signals import interrupted, raise_signal


def starting(store: Store) -> Any:
    """Make a start that commits itself, which is done where it is asked for."""
    one = store.starting()
    return lambda: start_runs(NAMESPACE, [one], stands_alone=True)


def test_a_signal_may_interrupt_a_start_at_any_moment(store: Store) -> None:
    """Whoever writes next finds nothing locked: not the turn, not the limit on how long a call may take."""
    store.database.write_sync(starting(store))
    for moment in itertools.count(1):
        if not interrupted(moment, functools.partial(store.database.write_sync, starting(store)), raise_signal):
            break
        assert in_thread(store.database.write_sync, starting(store)).result(LIMIT_S), moment

    assert moment > 100
    assert len(store.system.table("runs")) > moment
