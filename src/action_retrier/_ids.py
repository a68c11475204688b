"""Identifiers: made here, before the database is asked, so that a repeated start inserts once."""

import os
import random
import re
import secrets
import threading
import uuid

from ._clock import Clock

_CANONICAL = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RANDOM = (1 << 62) - 1
_lock = threading.Lock()
_last_tick = 0


def new_run_id(clock: Clock) -> str:
    """
    Return a UUIDv7 (RFC 9562, section 5.7) in canonical form.

    The twelve bits after the millisecond hold its fraction (method 3 of section 6.2), and an id
    made by this process is larger than every earlier one, so that ids sort by age.
    """
    global _last_tick  # noqa: PLW0603 - one sequence a process is the point
    now_us = clock.now_us()
    tick = (now_us // 1000 << 12) | (now_us % 1000 * 4096 // 1000)
    with _lock:
        _last_tick = tick = max(tick, _last_tick + 1)
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | int.from_bytes(os.urandom(8)) & _RANDOM
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 - in a forked child, where whoever held it is not
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def new_worker_id() -> str:
    """Return a fresh UUIDv4: every incarnation of a worker has its own."""
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


def system_random() -> random.Random:
    """Return the operating system's randomness, which needs no seed and is safe after a fork."""
    return random.SystemRandom()


def is_run_id(text: object) -> bool:
    """Tell whether *text* has the form of an id; anything else is unknown without asking."""
    return isinstance(text, str) and _CANONICAL.fullmatch(text) is not None
