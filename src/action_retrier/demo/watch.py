"""Watching over the parts while they work, and killing a worker in mid-flight."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from http.client import HTTPConnection

from action_retrier import App, Run, SyncActionRetrier

from .display import Display
from .plan import CLIENT_TIMEOUT_MS, FATES, Fate, load_events
from .processes import Child

ACTION = "action_retrier.demo.app:deliver_webhook"
TOTAL = len(load_events()) - FATES[Fate.ROLLED_BACK]
KILL_AFTER_STARTS = 150
"""How many events the shop has taken at least when a worker is killed."""

HELD_FOR_A_KILL = 2
"""How many requests a worker has to have in the air to be worth killing."""

KILL_ANYWAY_AFTER_S = 9.0
REPLACE_AFTER_S = 0.7
LOOK_EVERY_S = 0.25
AIM_EVERY_S = 0.05
GIVE_UP_AFTER_S = 25.0


class Doings:
    """What the shop does out of the ordinary, much of it alike: the first of a kind is news, and all are counted."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def news(self, lines: Iterable[str]) -> Iterator[str]:
        """Take in lines of its journal, and yield what has not been seen before."""
        for doing in filter(None, map(describe, lines)):
            self._counts[doing] += 1
            if self._counts[doing] == 1:
                yield doing

    def summary(self) -> str:
        """Return how often each of them happened."""
        return "; ".join(f"{doing} ({count} times)" for doing, count in self._counts.items())


class Watch:
    """
    Looks at the database until the shop has closed and every run has completed.

    *workers* are the living ones: the killed worker is taken out, its replacement put in.
    """

    def __init__(
        self,
        app: App,
        shop: Child,
        port: int,
        *,
        workers: list[Child],
        start_replacement: Callable[[], Child],
        display: Display,
    ) -> None:
        self._app = app
        self._retrier = SyncActionRetrier(app)
        self._shop = shop
        self._port = port
        self._workers = workers
        self._start_replacement = start_replacement
        self._display = display
        self._began_at = time.monotonic()
        self._killed_at: float | None = None
        self._replaced = False
        self._journal_read = 0
        self._doings = Doings()
        self._has_closed = False
        self._raised: dict[str, str | None] = {}

    def until_done(self) -> list[Run]:
        """Watch, and kill and replace a worker meanwhile. Returns all runs as they are at the end."""
        while True:
            runs = self._look()
            if self._replaced and self._shop.exit_code is not None and not any(is_in_progress(run) for run in runs):
                self._shop.wait()
                return self._look()
            failed = self._failed_process()
            if failed is not None or self._seconds() > GIVE_UP_AFTER_S:
                reason = f"{failed.name} is gone" if failed else f"not done after {GIVE_UP_AFTER_S:.0f} s"
                self._display.happened(f"{reason}, giving up")
                return runs
            self._wait_and_aim()

    def _failed_process(self) -> Child | None:
        """A process that ended by itself before its work was done."""
        if self._shop.exit_code not in (None, 0):
            return self._shop
        return next((worker for worker in self._workers if worker.exit_code is not None), None)

    def _seconds(self) -> float:
        return time.monotonic() - self._began_at

    def _look(self) -> list[Run]:
        runs = self._all_runs()
        self._display.count(Counter(run.state for run in runs), TOTAL)
        self._tell_the_shops_doings()
        self._tell_failing_callbacks(runs)
        if not self._has_closed and self._shop.exit_code == 0:
            self._has_closed = True
            self._tell_of_closing(runs)
        return runs

    def _all_runs(self) -> list[Run]:
        runs: list[Run] = []
        cursor = None
        while True:
            page = self._retrier.list(self._app, action=ACTION, limit=1_000, cursor=cursor)
            runs += page.runs
            cursor = page.cursor
            if cursor is None:
                return runs

    def _wait_and_aim(self) -> None:
        """Let some time pass. While the kill is due, keep looking for the moment."""
        until = time.monotonic() + LOOK_EVERY_S
        while time.monotonic() < until:
            if self._killed_at is None and len(self._shop.lines) >= KILL_AFTER_STARTS:
                self._kill_in_flight()
            elif (
                self._killed_at is not None
                and not self._replaced
                and self._seconds() > self._killed_at + REPLACE_AFTER_S
            ):
                self._replace()
            time.sleep(AIM_EVERY_S)

    def _kill_in_flight(self) -> None:
        """Kill the worker that has most requests in the air, if there are enough to be worth it."""
        held = self._held()
        worker = max(self._workers, key=lambda worker: held[worker.pid])
        if held[worker.pid] >= HELD_FOR_A_KILL or self._seconds() > KILL_ANYWAY_AFTER_S:
            worker.kill()
            self._workers.remove(worker)
            self._killed_at = self._seconds()
            unanswered = f"{held[worker.pid]} of its requests unanswered"
            self._display.happened(f"SIGKILL: {worker.name} is killed, with {unanswered}", "bold red")

    def _replace(self) -> None:
        worker = self._start_replacement()
        self._workers.append(worker)
        self._replaced = True
        self._display.happened(f"{worker.name} started in its place", "bold")

    def _held(self) -> Counter[int]:
        """How many requests of each process the receiver is holding."""
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=2)) as connection:
            connection.request("GET", "/held")
            return Counter({int(pid): count for pid, count in json.load(connection.getresponse()).items()})

    def _tell_the_shops_doings(self) -> None:
        """Tell what is new in the shop's journal and out of the ordinary."""
        lines = self._shop.lines[self._journal_read :]
        self._journal_read += len(lines)
        for doing in self._doings.news(lines):
            self._display.happened(doing)

    def _tell_of_closing(self, runs: list[Run]) -> None:
        """Tell all that the shop did, and what is left to wait for."""
        self._shop.wait()  # until its last line is there
        self._tell_the_shops_doings()
        self._display.happened(f"the shop has closed; in all: {self._doings.summary()}")
        left = waits_for(runs)
        if left:
            self._display.happened(left)

    def _tell_failing_callbacks(self, runs: list[Run]) -> None:
        for run in runs:
            callback = run.callback
            if callback is not None and callback.state == "pending" and callback.last_error != self._raised.get(run.id):
                self._raised[run.id] = callback.last_error
                self._display.happened(f"a callback raised, and is tried again: {callback.last_error}")


def describe(line: str) -> str | None:
    """What one line of the shop's journal tells, if it is out of the ordinary."""
    entry = json.loads(line)
    if "cancel" in entry:
        return f"cancel of a {entry['state']} run: {entry['answer']}"
    return None if entry["committed"] else "an order rolled back, and its webhook with it"


def waits_for(runs: Iterable[Run]) -> str | None:
    """What has to end before the verdict, if there is anything left."""
    left = [run for run in runs if is_in_progress(run)]
    states = Counter(run.state if run.state in ("running", "pending") else "callback" for run in left)
    parts = (
        (states["running"], f"executing (no answer is waited for longer than {CLIENT_TIMEOUT_MS / 1000:g} s)"),
        (states["pending"], "backing off before a retry"),
        (states["callback"], "with a callback that has not committed yet"),
    )
    told = ", ".join(f"{count} {what}" for count, what in parts if count)
    return f"waiting for the last {len(left)} to end: {told}" if left else None


def is_in_progress(run: Run) -> bool:
    """Whether there is still something to do about this run."""
    return run.state in ("pending", "running") or (run.callback is not None and run.callback.state == "pending")
