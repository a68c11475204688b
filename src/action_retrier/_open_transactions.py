"""
Which tasks and threads have a transaction of ours open.

A call that is given the app there, instead of the transaction's ctx, would wait on SQLite for
the very transaction it is made in.
"""

import asyncio
import contextlib
import threading
from collections.abc import Hashable, Iterator

from .errors import InvalidContext

_open: dict[object, list[Hashable]] = {}


def _here() -> object:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident() if task is None else task


@contextlib.contextmanager
def opened_here(turn: Hashable) -> Iterator[None]:
    """Note that this task, or thread, has a transaction open, and with it a database's *turn*."""
    here = _here()
    turns = _open.setdefault(here, [])
    turns.append(turn)
    try:
        yield
    finally:
        turns.remove(turn)
        if not turns:
            _open.pop(here, None)


def _is_open_here(turn: Hashable) -> bool:
    return turn in _open.get(_here(), ())


def refuse_inside_transaction(turn: Hashable) -> None:
    """Raise `InvalidContext` where a transaction that has this *turn* is open."""
    if _is_open_here(turn):
        raise InvalidContext(
            problem="the app was passed inside an open transaction on the same database",
            remedy="pass the transaction's ctx, so that the call becomes part of it; with the app it would need a "
            "transaction of its own, and wait for the one it is made in",
        )


def refuse_worker_inside_transaction(turn: Hashable, called: str = "a worker was started") -> None:
    """Raise `InvalidContext`, saying what was *called*, where a transaction that has this *turn* is open."""
    if _is_open_here(turn):
        raise InvalidContext(
            problem=f"{called} inside an open transaction on the same database",
            remedy="leave its block first: what it has started is not there before it has committed, and on SQLite the "
            "worker would wait for it",
        )
