"""Which event loop a worker process runs on."""

import asyncio
from collections.abc import Callable
from enum import StrEnum

from .loading import WrongUsage


class Loop(StrEnum):
    """What ``--loop`` may name."""

    AUTO = "auto"
    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"


def new_loop_of(kind: Loop) -> Callable[[], asyncio.AbstractEventLoop]:
    """
    Return what makes a loop of that kind; ``auto`` is uvloop where it is installed.

    Raises:
        WrongUsage: It is not installed.
    """
    if kind is Loop.ASYNCIO:
        return asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError as error:
        if kind is Loop.AUTO:
            return asyncio.new_event_loop
        raise WrongUsage("--loop uvloop: it is not installed (pip install 'action-retrier[uvloop]')") from error
    return uvloop.new_event_loop
