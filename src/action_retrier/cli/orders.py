"""What a worker process is told, by signals and by its supervisor, and how it obeys in any state."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NoReturn

from .._clock import SystemClock
from ..config import logger

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAST_WORDS_S = 30.0
"""How long, after the grace time, a worker may need to stop its attempts, report them and sign off."""
_REACTION_S = 2.0  # an event loop that has not reacted by then is blocked by an action
LONGEST_WAIT_S = 3600.0
"""At once: what waits in the operating system takes no number of any size."""
_EXIT_S = 5.0  # how long the interpreter may then need to end
READY = b"r"
"""What a process says to its supervisor."""
STOP = b"s"
"""What the supervisor says to a process."""


def signals_to_heed() -> list[signal.Signals]:
    """Return the signals that mean a stop, but for those that our parent had us ignore, as nohup does."""
    return [number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class Orders:
    """
    What this process has been told: to stop, to hurry, to leave at once.

    A thread hears and obeys, so that an action that blocks the event loop, or never returns, does
    not keep the process from ending. What it hears in several ways is one order: Python's handlers
    need the main thread, which may be blocked, and the wake-up descriptor may be taken by user
    code; and a service manager may signal the processes as well as their supervisor.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._clock = SystemClock()
        self._words: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._heard = {"handler": 0, "wake-up": 0, "supervisor": 0}
        self._level = 0
        self._deadline_s: float | None = None
        self._has_last_words = False
        self._exit_code = 1

    def listen(self, stop: Callable[[], None], hurry: Callable[[], None], *, is_stopping: Callable[[], bool]) -> None:
        """
        Begin.

        Args:
            stop: Called in a thread when the work is to stop; *hurry* when its grace time is to end.
            is_stopping: Tells whether *stop* has reached the event loop.
        """
        self._stop, self._hurry, self._is_stopping = stop, hurry, is_stopping
        ours, theirs = socket.socketpair()
        theirs.settimeout(0)
        for target, arguments in ((self._obey, ()), (self._hear_wake_ups, (ours, theirs))):
            threading.Thread(target=target, args=arguments, name="action-retrier-orders", daemon=True).start()
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in signals_to_heed():
            signal.signal(number, self._on_signal)
        os.register_at_fork(after_in_child=_forget_signals)

    def listen_to(self, line: int) -> None:
        """Hear the supervisor too, on its end of the line."""
        threading.Thread(target=self._hear, args=(line,), name="action-retrier-line", daemon=True).start()

    def ended(self) -> None:
        """The work is done: what is left is to end the interpreter, which threads of user code may prevent."""
        self._words.put(("end", ""))

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._words.put(("handler", signal.Signals(number).name))  # safe wherever it interrupts

    def _hear_wake_ups(self, line: socket.socket, _other_end: socket.socket) -> None:
        """Hear the signals as Python's C code does, whatever the main thread does."""
        while True:
            for number in line.recv(64):
                if number in _STOP_SIGNALS:
                    self._words.put(("wake-up", signal.Signals(number).name))

    def _hear(self, line: int) -> None:
        while True:
            try:
                heard = os.read(line, 16)
            except OSError:
                heard = b""
            if not heard:
                self._words.put(("end of line", "the supervisor is gone"))
                return
            for _ in heard:
                self._words.put(("supervisor", "the supervisor says so"))

    def _obey(self) -> None:
        while True:
            left_s = None if self._deadline_s is None else max(0.0, self._deadline_s - self._now_s())
            try:
                source, name = self._words.get(timeout=None if left_s is None else min(left_s, LONGEST_WAIT_S))
            except Empty:
                if left_s is not None and left_s <= LONGEST_WAIT_S:
                    self._time_is_up()
                continue
            now_s = self._now_s()
            match source:
                case "end":
                    self._exit_code, self._has_last_words = 0, True
                    self._deadline_s = now_s + _EXIT_S
                    continue
                case "end of line":
                    self._heard["supervisor"] = max(1, self._heard["supervisor"])
                case _:
                    self._heard[source] += 1
            self._raise_level(max(self._heard.values()), name, now_s)

    def _now_s(self) -> float:
        return self._clock.monotonic_us() / 1e6

    def _time_is_up(self) -> None:
        if self._is_stopping() and not self._has_last_words:
            self._has_last_words = True
            self._deadline_s = self._now_s() + LAST_WORDS_S
            return
        if self._exit_code:
            logger.error("an action keeps this process from stopping, so it leaves; others recover its runs")
        leave(self._exit_code)

    def _raise_level(self, level: int, name: str, now_s: float) -> None:
        if level <= self._level:
            return
        self._level = level
        match level:
            case 1:
                words = "%s: stopping; what has begun may end for %g s (a second signal ends that)"
                logger.info(words, name, self._grace_s)
                self._deadline_s = now_s + self._grace_s + _REACTION_S
                self._stop()
            case 2:
                logger.warning("%s again: the grace time ends now (again: leave at once)", name)
                self._deadline_s = now_s + _REACTION_S
                self._hurry()
            case _:
                logger.warning("%s again: leaving at once; others recover what was executing", name)
                leave(1)


def leave(code: int) -> NoReturn:
    """End the process now, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _forget_signals() -> None:
    """In a forked child, which is the user's own: its signals are not ours, and mean what they mean by default."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in _STOP_SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Orders):
            signal.signal(number, signal.SIG_DFL)


def take_line() -> int:
    """
    Take the line to the supervisor from standard input.

    What actions start in turn would inherit it, and could read what is meant for us.
    """
    line = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return line
