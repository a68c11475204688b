"""The supervisor of several worker processes: keeps them running, passes signals on, and ends with them."""

import json as jsonlib
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from .._clock import SystemClock
from .._policy import to_us
from ..config import logger
from .orders import LAST_WORDS_S, LONGEST_WAIT_S, STOP, signals_to_heed
from .terminal import complain, say

_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 30.0
_SOUND_S = 60.0  # a process that has lived for so long is replaced as fast as the first one
_FALSE_STARTS = 5  # in a row: then nothing will come of it
_KILL_MARGIN_S = 5.0
_WRONG_USAGE = 2


class _Place:
    """A place for one process, filled again whenever it falls empty."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.line: socket.socket | None = None
        self.is_ready = False
        self.began_s = 0.0
        self.replacements = 0
        self.start_at_s: float | None = None

    @property
    def works(self) -> bool:
        """Whether it has a process that has told that it is ready."""
        return self.process is not None and self.is_ready


class Supervisor:
    """
    Runs one command several times, and again whenever one of the processes ends.

    Each process has a line to the supervisor as its standard input, on which it says once that
    it is ready and hears when to stop. The line also ends with the supervisor, however that
    ends, and the process stops then.

    Args:
        command: What is run.
        later: Further arguments of those processes that start when another one has been ready.
    """

    def __init__(
        self, command: Sequence[str], processes: int, *, later: Sequence[str], grace_ms: float, json: bool
    ) -> None:
        self._command = command
        self._later = later
        self._places = [_Place() for _ in range(processes)]
        self._grace_s = to_us(grace_ms) / 1e6
        self._json = json
        self._clock = SystemClock()
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []  # heard, and not passed on yet
        self._passed_on = 0
        self._false_starts = 0
        self._has_worked = False
        self._ending = False
        self._exit_code = 0
        self._kill_at_s: float | None = None

    def run(self) -> int:
        """Supervise until a signal, or until it is hopeless. Returns the exit code."""
        with self._hearing_signals():
            self._tell()
            # The first one alone: what prevents one from starting prevents all, and is to be said once.
            self._places[0].start_at_s = self._now_s()
            while not self._ending or any(place.process is not None for place in self._places):
                self._fill()
                self._wait()
                self._pass_signals_on()
                self._bury()
        return self._exit_code

    def _tell(self) -> None:
        count = len(self._places)
        event = {"event": "supervising", "pid": os.getpid(), "processes": count}
        say(jsonlib.dumps(event) if self._json else f"supervisor {os.getpid()} keeps {count} worker processes running")

    def _now_s(self) -> float:
        return self._clock.monotonic_us() / 1e6

    @contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        """Let signals, the end of a child among them, wake `_wait`."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.settimeout(0)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in signals_to_heed():
            signal.signal(number, self._on_signal)
        self._selector.register(ours, selectors.EVENT_READ)
        yield
        signal.set_wakeup_fd(-1)
        self._selector.close()
        ours.close()
        theirs.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    # Starting.

    def _fill(self) -> None:
        """Start what is due to be started."""
        for place in self._places:
            if not self._ending and place.start_at_s is not None and place.start_at_s <= self._now_s():
                self._start(place)

    def _start(self, place: _Place) -> None:
        place.start_at_s, place.is_ready, place.began_s = None, False, self._now_s()
        line, theirs = socket.socketpair()
        line.settimeout(0)
        command = [*self._command, *(self._later if self._has_worked else ())]
        with theirs:
            try:
                place.process = subprocess.Popen(command, stdin=theirs.fileno())  # noqa: S603 - this very program
            except OSError as error:
                line.close()
                logger.error("a worker process cannot be started: %s", error)
                self._replace(place, 1)
                return
        place.line = line
        self._selector.register(line, selectors.EVENT_READ, place)

    def _wait(self) -> None:
        """Wait for a signal, a word from a process, or the time to do something."""
        times = [place.start_at_s for place in self._places if place.start_at_s is not None and not self._ending]
        if self._kill_at_s is not None:
            times.append(self._kill_at_s)
        wait_s = min(max(0.0, min(times) - self._now_s()), LONGEST_WAIT_S) if times else None
        for key, _ in self._selector.select(wait_s):
            end = key.fileobj
            assert isinstance(end, socket.socket)
            try:
                heard = end.recv(256)
            except OSError:
                heard = b""
            if key.data is None:
                continue
            if heard:
                self._is_ready(key.data)
            else:
                self._selector.unregister(end)
        if self._kill_at_s is not None and self._kill_at_s <= self._now_s():
            self._kill()

    def _is_ready(self, ready: _Place) -> None:
        ready.is_ready = self._has_worked = True
        self._false_starts = 0
        for place in self._places:
            if place.process is None and place.start_at_s is None:
                place.start_at_s = self._now_s()

    # Ending.

    def _pass_signals_on(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._passed_on += 1
            logger.info("%s: passed on to the worker processes", signal.Signals(number).name)
            self._stop_all()

    def _stop_all(self) -> None:
        """Tell every process to stop; if that has been done, that its grace time ends."""
        grace_s = 0.0 if self._ending else self._grace_s
        self._ending = True
        self._kill_at_s = self._now_s() + grace_s + LAST_WORDS_S + _KILL_MARGIN_S
        for place in self._places:
            if place.process is None:
                continue
            if place.is_ready and place.line is not None:
                with suppress(OSError):  # it has ended
                    place.line.send(STOP)
            else:
                place.process.terminate()  # it does not listen yet, and has begun nothing

    def _kill(self) -> None:
        self._kill_at_s = None
        for place in self._places:
            if place.process is not None:
                logger.error("worker process %d does not stop: it is killed", place.process.pid)
                place.process.kill()

    def _bury(self) -> None:
        """See which processes have ended, and what follows."""
        for place in self._places:
            if place.process is None or (code := place.process.poll()) is None:
                continue
            pid, place.process = place.process.pid, None
            if place.line is not None:
                with suppress(KeyError):
                    self._selector.unregister(place.line)
                place.line.close()
                place.line = None
            if self._ending:
                self._note_end(place, pid, code)
            else:
                logger.warning("worker process %d has ended (%s)", pid, _describe(code))
                self._replace(place, code)

    def _note_end(self, place: _Place, pid: int, code: int) -> None:
        if code in {0, -signal.SIGTERM}:
            return
        logger.warning("worker process %d has ended (%s)", pid, _describe(code))
        if place.is_ready:  # else it has begun nothing: that it could not start is no bad end
            self._exit_code = self._exit_code or 1

    def _replace(self, place: _Place, code: int) -> None:
        """Have another process start, later each time; unless none has ever worked, or none does any more."""
        if place.is_ready:
            if self._now_s() - place.began_s >= _SOUND_S:
                place.replacements = 0
        else:
            self._false_starts += 1
        place.is_ready = False
        is_hopeless = self._false_starts >= _FALSE_STARTS or (code == _WRONG_USAGE and not self._has_worked)
        if is_hopeless and not any(one.works for one in self._places):
            complain(f"Error: no worker process gets ready ({_describe(code)}, see above): giving up")
            self._exit_code = _WRONG_USAGE if code == _WRONG_USAGE else 1
            self._stop_all()
            return
        delay_s = min(_FIRST_BACKOFF_S * 2**place.replacements, _LONGEST_BACKOFF_S)
        place.replacements += 1
        place.start_at_s = self._now_s() + delay_s
        logger.info("another worker process starts in %g s", delay_s)


def _describe(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
