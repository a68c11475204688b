"""Deadlines of calls on PostgreSQL, across a fork."""

import os
import select
import socket
import threading
from typing import Any

from action_retrier.drivers.postgres import deadlines as module
from action_retrier.drivers.postgres.deadlines import Deadlines

LIMIT_S = 30


class Connection:
    """What is cut: a descriptor is all that is asked of it."""

    def __init__(self, end: socket.socket) -> None:
        self.pgconn = self
        self.socket = end.fileno()


def is_cut(other_end: socket.socket, within_s: float) -> bool:
    return bool(select.select([other_end], [], [], within_s)[0])


def test_a_forked_child_cuts_nothing_of_its_parents() -> None:
    """A call was under way in the parent: the child never sees its end, and must not judge it."""
    deadlines = Deadlines()
    deadlines._thread = threading.current_thread()  # the parent's does not come to it before the fork
    (parents, one), (childs, other) = socket.socketpair(), socket.socketpair()
    with parents, one, childs, other:
        connections: list[Any] = [Connection(parents), Connection(childs)]
        with deadlines.within(3600, connections[0]):
            deadlines._watches = [(0.0, *rest) for _, *rest in deadlines._watches]  # expired, for whoever looks
            deadlines.begin()  # as after a fork
            with deadlines.within(0.01, connections[1]):
                assert is_cut(other, LIMIT_S)  # so somebody has looked
            assert not is_cut(one, 0)


def test_deadlines_begin_anew_in_a_forked_child() -> None:
    before = module.deadlines._changed
    pid = os.fork()
    if pid == 0:
        os._exit(0 if module.deadlines._changed is not before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
