"""One worker process: works until it is told to stop, and then ends, whatever its actions do."""

import asyncio
import json as jsonlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, NoReturn

from .._clock import SystemClock
from .._policy import to_us
from .._sessions import run_to_end
from .._worker import Worker
from ..app import App
from ..config import logger
from .terminal import counted, say

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

    A signal handler does nothing but put a word into a queue, which is safe wherever it
    interrupts. A thread obeys, so that an action that blocks the event loop, or never returns,
    does not keep the process from ending. A signal and its supervisor's word are one order: a
    service manager may send the signal to all processes at once.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._clock = SystemClock()
        self._words: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._heard = {"signal": 0, "supervisor": 0}
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
        threading.Thread(target=self._obey, name="action-retrier-orders", daemon=True).start()
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
        self._words.put(("signal", signal.Signals(number).name))

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
                logger.info("%s: stopping; what has begun may end for %g s (again: no longer)", name, self._grace_s)
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
    """In a forked child, which is the user's own: signals mean what they mean by default."""
    for number in _STOP_SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Orders):
            signal.signal(number, signal.SIG_DFL)


class WorkerProcess:
    """The life of one worker process."""

    def __init__(
        self, app: App, *, concurrency: int, queues: list[str] | None, grace_ms: float, json: bool, supervised: bool
    ) -> None:
        self._app = app
        self._session = app.worker(concurrency=concurrency, queues=queues, grace_ms=grace_ms)
        self._orders = Orders(to_us(grace_ms) / 1e6)
        self._concurrency = concurrency
        self._queues = queues
        self._json = json
        self._line = _take_line() if supervised else None
        self._abandoned = 0

    def run(self) -> None:
        """Work until told to stop. Does not return if an action does not react to that."""
        run_to_end(self._live())
        if self._abandoned:
            # Everything is reported. The interpreter would wait for the event loop or for threads of the action.
            leave(0)
        self._orders.ended()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        worker = self._session.make()
        told = loop.create_future()

        def call(function: Callable[[], None]) -> Callable[[], None]:
            def call_soon() -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(function)

            return call_soon

        def stop() -> None:
            if not told.done():
                told.set_result(None)

        self._orders.listen(call(stop), call(worker.hurry), is_stopping=told.done)
        if self._line is not None:
            self._orders.listen_to(self._line)
        self._tell_of_database()
        starting = asyncio.ensure_future(worker.start())
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            leave(0)  # the database keeps it waiting, and nothing has begun
        await starting
        self._tell_of_readiness(worker)
        await told
        await worker.stop()
        self._abandoned = worker.abandoned

    def _tell_of_database(self) -> None:
        where = f"database: {self._app.location} (namespace {self._app.namespace})"
        self._tell("starting", where, database=self._app.location, namespace=self._app.namespace)

    def _tell_of_readiness(self, worker: Worker) -> None:
        registry = self._app._engine.registry  # noqa: SLF001 - one house
        queues = "all queues" if self._queues is None else f"queues {', '.join(self._queues)}"
        text = (
            f"worker process {os.getpid()} is ready: {counted(len(registry.actions), 'action')}, {queues}, "
            f"up to {self._concurrency} attempts at once"
        )
        details = {"worker": worker.id, "actions": sorted(registry.actions), "mutations": sorted(registry.mutations)}
        self._tell("ready", text, **details, queues=self._queues, concurrency=self._concurrency)
        if not registry.actions:
            logger.warning("this App has no actions: --import the modules that register them")
        if self._line is not None:
            with suppress(OSError):  # the supervisor has gone, and we are about to hear of it
                os.write(self._line, READY)

    def _tell(self, event: str, text: str, **details: Any) -> None:
        say(jsonlib.dumps({"event": event, "pid": os.getpid(), **details}) if self._json else text)


def _take_line() -> int:
    """
    Take the line to the supervisor from standard input.

    What actions start in turn would inherit it, and could read what is meant for us.
    """
    line = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return line
