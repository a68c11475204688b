"""A signal's handler that is called at a moment of our choice: at each at which CPython may call one."""

import contextlib
import dis
import functools
import itertools
import sqlite3
import sys
import threading
from pathlib import Path
from types import CodeType
from typing import Any

from action_retrier import drivers

_OURS = (str(Path(drivers.__file__).parent), contextlib.__file__, threading.__file__)


class Signal(BaseException):
    """What a signal's handler raises."""


@functools.cache
def _moments(code: CodeType) -> frozenset[int]:
    """Return the offsets in *code* before which CPython may call a signal's handler: after calls, and where it begins."""
    pairs = itertools.pairwise(dis.get_instructions(code))
    return frozenset(after.offset for one, after in pairs if one.opname.startswith(("CALL", "RESUME")))


def interrupted(moment: int, call: Any, handle: Any) -> bool:
    """Make *call*, with a signal that is handled so at the moment of that number; False: it has ended before."""
    left = moment

    def trace(frame: Any, event: str, argument: object) -> Any:
        del argument
        nonlocal left
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in _moments(frame.f_code):
            left -= 1
            if left == 0:
                sys.settrace(None)
                handle()
        return trace

    sys.settrace(trace)
    try:
        call()
    except (Signal, sqlite3.DatabaseError):
        pass  # the latter is what the sqlite3 module makes of a signal that has come while SQLite was asking us
    finally:
        sys.settrace(None)
    return left <= 0


def raise_signal() -> None:
    raise Signal
