"""
An event loop whose time is a number: it jumps to the next timer as soon as nothing is ready.

What happens when is decided by a seeded generator, so that a seed is a whole history and can be replayed. Only what
asyncio documents for those who write event loops is used (`asyncio.AbstractEventLoop`, and `_set_running_loop`, which
is named there), on Python 3.11 to 3.14 alike.

Several processes live in one loop. Each has a lane for its own event loop, and one for each of its threads. Inside a
lane the order is asyncio's, first come, first served: that is documented, tasks rely on it, and a shuffle there would
find only what cannot happen. Between lanes, at each step, any that has something to do may be next.

Threads are greenlets: code that blocks, such as the heartbeat, runs as it is written, and hands over where it waits.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from random import Random
from types import SimpleNamespace
from typing import Any

from greenlet import getcurrent, greenlet

from action_retrier._threads import settle

_LONGEST_STEP_S = 0.0001
_MOST_STEPS = 3_000_000


class Lane:
    """What is done one after the other: an event loop of a process, one of its threads, or the rest of the world."""

    __slots__ = ("in_reserve", "is_dead", "pauses", "process", "ready")

    def __init__(self, process: Any = None) -> None:
        self.process = process
        self.ready: deque[Handle] = deque()
        self.pauses = 0  # above 0 nothing of it is done
        self.is_dead = False
        self.in_reserve = False  # among those that the loop chooses from


class Handle:
    """A call that is due, now or later."""

    __slots__ = ("_when", "args", "callback", "context", "is_canceled", "lane")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context, lane: Lane) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.lane = lane
        self.is_canceled = False
        self._when = 0.0

    def cancel(self) -> None:
        self.is_canceled = True

    def cancelled(self) -> bool:
        return self.is_canceled

    def when(self) -> float:
        return self._when

    def get_context(self) -> Context:
        return self.context


_world = Lane()
LANE: ContextVar[Lane] = ContextVar("LANE", default=_world)
"""In whose turn this code runs."""


class Stuck(AssertionError):
    """Nothing is left to do, or there is no end to it."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Runs everything, in an order and at times that the seed decides."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now_s = 0.0
        self.steps = 0
        self.errors: list[str] = []
        self.world = _world
        _world.ready.clear()
        _world.in_reserve = False
        self._reserve: list[Lane] = []
        self._timers: list[tuple[float, int, Handle]] = []
        self._order = itertools.count()
        self._closed = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._threads: dict[greenlet, Thread] = {}
        self._exception_handler: Any = None

    # Time.

    def time(self) -> float:
        """Return the time as the process sees it that asks."""
        process = self.lane.process
        return self.now_s if process is None else process.local_s(self.now_s)

    @property
    def lane(self) -> Lane:
        """Whose turn it is."""
        thread = self._threads.get(getcurrent()) if self._threads else None
        return LANE.get() if thread is None else thread.lane

    # What is due.

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        context = copy_context() if context is None else context
        handle = Handle(callback, args, context, context.get(LANE, _world))
        self._put(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        if self._closed:
            raise RuntimeError("the event loop is closed")
        process = self.lane.process
        return self.call_on(_world if process is None else process.lane, 0, callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:
        context = copy_context() if context is None else context
        lane = context.get(LANE, _world)
        handle = Handle(callback, args, context, lane)
        handle._when = when
        when_s = when if lane.process is None else lane.process.true_s(when)
        heapq.heappush(self._timers, (when_s, next(self._order), handle))
        return handle

    def call_on(
        self, lane: Lane, delay_s: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        """Make a call in the turn of *lane*, after a while of true time."""
        context = copy_context() if context is None else context
        context.run(LANE.set, lane)
        handle = Handle(callback, args, context, lane)
        if delay_s <= 0:
            self._put(handle)
        else:
            heapq.heappush(self._timers, (self.now_s + delay_s, next(self._order), handle))
        return handle

    def _put(self, handle: Handle) -> None:
        lane = handle.lane
        if lane.is_dead:
            return
        lane.ready.append(handle)
        if not lane.in_reserve and not lane.pauses:
            lane.in_reserve = True
            self._reserve.append(lane)

    def pause(self, lane: Lane) -> None:
        """Do nothing of *lane* until it is resumed as often as it was paused."""
        lane.pauses += 1

    def resume(self, lane: Lane) -> None:
        lane.pauses -= 1
        if lane.ready and not lane.pauses and not lane.in_reserve and not lane.is_dead:
            lane.in_reserve = True
            self._reserve.append(lane)

    # Running.

    def run_until_complete(self, main: Any) -> Any:
        task = self.create_task(main)
        asyncio._set_running_loop(self)
        try:
            while not task.done():
                self._step()
        finally:
            asyncio._set_running_loop(None)
        return task.result()

    def _step(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now_s:
            handle = heapq.heappop(timers)[2]
            if not handle.is_canceled:
                self._put(handle)
        if not self._reserve:
            self._jump()
            return
        chance = self.rng.random()
        chosen = self._choose(chance)
        if chosen is None or chosen.is_canceled:
            return
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise Stuck(f"no end after {self.steps} steps")
        self.now_s += chance * _LONGEST_STEP_S  # nothing takes no time: what asks again and again gets on
        try:
            chosen.context.run(chosen.callback, *chosen.args)
        except BaseException as error:
            self.call_exception_handler({"message": f"{chosen.callback!r} raised", "exception": error})
            if isinstance(error, KeyboardInterrupt):
                raise

    def _jump(self) -> None:
        """Let time go on to the next timer."""
        timers = self._timers
        while timers and (timers[0][2].is_canceled or timers[0][2].lane.is_dead):
            heapq.heappop(timers)
        if not timers:
            raise Stuck("nothing will ever happen again")
        self.now_s = max(self.now_s, timers[0][0])

    def _choose(self, chance: float) -> Handle | None:
        """Take what is next from one of the lanes; None if it was one that must not go on."""
        reserve = self._reserve
        chosen = int(chance * len(reserve))
        lane = reserve[chosen]
        handle = None if lane.is_dead or lane.pauses else lane.ready.popleft()
        if handle is None or not lane.ready:
            lane.in_reserve = False
            reserve[chosen] = reserve[-1]
            reserve.pop()
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None, **options: Any) -> Any:
        task = asyncio.Task(coro, loop=self, name=name, context=context, **options)
        # Kept, so that what a dead process left is not thrown out of its coroutines, which would run a little more.
        self._tasks.append(task)
        return task

    def close(self) -> None:
        """End what is left, when nothing of that matters any more."""
        self._closed = True
        for thread in list(self._threads.values()):
            thread.kill()
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False
                _close_quietly(task.get_coro())
        self._tasks.clear()
        self._timers.clear()

    # Threads.

    def run_in_executor(self, executor: Any, call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()

        def work() -> None:
            result, problem = None, None
            try:
                result = call(*args)
            except Exception as error:  # noqa: BLE001 - whoever awaits the future gets it
                problem = error
            self.call_soon_threadsafe(settle, future, result, problem)

        self.start_thread(work)
        return future

    def start_thread(self, target: Callable[[], Any]) -> "Thread":
        """Run *target* in a thread of the process whose turn it is, which begins some time soon."""
        thread = Thread(self, target)
        thread.start()
        return thread

    def this_thread(self) -> "Thread | None":
        return self._threads.get(getcurrent())

    def block(self, seconds: float) -> None:
        """Block this thread; an event loop's own lane goes on at once, and has its process blocked instead."""
        thread = self.this_thread()
        if thread is not None:
            thread.sleep(seconds)
        elif (process := self.lane.process) is not None and seconds > 0:
            self.pause(process.lane)
            self.call_on(_world, seconds, self.resume, process.lane)


class Thread:
    """A thread of a simulated process."""

    def __init__(self, loop: SimulatedLoop, target: Callable[[], Any]) -> None:
        process = loop.lane.process
        self.lane = Lane(process)
        self._loop = loop
        self._target = target
        self._greenlet = greenlet(self._run)
        self._context = copy_context()
        self._greenlet.gr_context = self._context
        self._hurried = False
        self._sleeps = 0
        if process is not None:
            process.adopt(self.lane)

    def start(self) -> None:
        self._loop._threads[self._greenlet] = self
        self._context.run(LANE.set, self.lane)
        self.wake_after(0.0005 * self._loop.rng.random())

    def is_alive(self) -> bool:
        return self._greenlet in self._loop._threads

    def wake_after(self, seconds: float) -> Handle:
        """Have it woken from its present sleep, unless something else has done so by then."""
        return self._loop.call_on(self.lane, seconds, self._switch, self._sleeps)

    def _switch(self, sleep: int) -> None:
        if sleep == self._sleeps and not self._greenlet.dead:
            self._greenlet.parent = getcurrent()
            self._greenlet.switch()

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._loop._threads.pop(self._greenlet, None)

    def park(self) -> None:
        """Hand over until somebody switches back."""
        self._greenlet.parent.switch()
        self._sleeps += 1

    def sleep(self, seconds: float) -> None:
        if self._hurried:
            return
        timer = self.wake_after(seconds)
        self.park()
        timer.cancel()

    def join(self) -> None:
        """Have it done with at once: whoever waits has a lane that cannot."""
        self._hurried = True
        while self.is_alive() and not self.lane.is_dead:
            self._switch(self._sleeps)

    def kill(self) -> None:
        self._loop._threads.pop(self._greenlet, None)
        self._hurried = True
        if not self._greenlet.dead:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw()


class Event:
    """What ``threading.Event`` is to such threads."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Thread] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for thread in self._waiting:
            thread.wake_after(0)
        self._waiting.clear()

    def wait(self, timeout: float) -> bool:
        if not self._is_set:
            thread = running().this_thread()
            assert thread is not None
            self._waiting.append(thread)
            thread.sleep(timeout)
            if thread in self._waiting:
                self._waiting.remove(thread)
        return self._is_set


def running() -> SimulatedLoop:
    """Return the loop that runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    return loop


threading = SimpleNamespace(
    Event=Event,
    Thread=lambda target, **_: Thread(running(), target),
    current_thread=lambda: running().this_thread(),
)
"""What stands in for the module where the library's heartbeat uses it."""


def _close_quietly(coro: Any) -> None:
    with contextlib.suppress(BaseException):  # it awaits on its way out
        coro.close()
