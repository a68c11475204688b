"""One soak: processes at work on a database, and faults injected as planned, until everything has ended; then the oracle."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from crash_database import CrashDatabase, PostgresDatabase, SqliteDatabase
from crash_oracle import examine, is_quiet
from crash_processes import Process
from crash_scene import Scene
from postgres_proxy import Proxy
from postgres_server import running_server

from .evidence import Evidence
from .faults import Injector
from .faults_postgres import PostgresInjector
from .faults_sqlite import SqliteInjector
from .fleet import Fleet, Slot
from .plan import THROUGH_PROXIES, WORKERS, Plan, plan

CLIENT = Path(__file__).parent / "client.py"
LEASE_S = 2.0
"""Of most of a soak, so that many of them can end in it."""
LONG_LEASE_S = 10.0
CONCURRENCY = 20
GRACE_MS = 1000
RATE = 120.0
"""Runs that are started in a second."""
STARTING_THREADS = 12
DRAINS_WITHIN_S = 180.0
PROGRESS_EVERY_S = 10.0
LEAST_PAUSE = 0.7
"""Between two faults, of what it is by the plan."""
Say = Callable[[str], None]
IsStopped = Callable[[], bool]
MakeInjector = Callable[[Fleet, float], Injector]


class Storm:
    """What takes place on one database."""

    def __init__(self, scene: Scene, seed: int, made: Plan, rate: float, urls: list[str]) -> None:
        """
        Get ready.

        Args:
            urls: How workers and clients reach the database: one for each worker, then one for each client.
        """
        self.scene = scene
        self.seed = seed
        self.plan = made
        self.fleet = Fleet()
        self._urls = urls
        self._rate = rate
        self.lease_s = LEASE_S
        self.began_at = 0.0
        self.stopped_s: float | None = None
        """After how long somebody stopped it, if anybody did."""

    # Processes.

    def _start_worker(self, url: str) -> Process:
        lease = [] if self.lease_s == LONG_LEASE_S else ["--lease-s", self.lease_s]
        options = ("--concurrency", CONCURRENCY, "--grace-ms", GRACE_MS)
        return self.scene.processes.start("crash_program.py", url, *lease, "worker", *options)

    def _start_client(self, number: int, url: str) -> Process:
        # Whoever writes through a connection of its own is one more writer of a file: together they are sixteen.
        roles = [("--starters", 2, "--owners", 6), ("--owners", 4, "--askers", 4)][number]
        about = ("--beside", self.scene.database.url, "--name", f"client{number}", "--seed", self.seed)
        return self.scene.processes.start(str(CLIENT), url, *about, "--rate", self._rate / STARTING_THREADS, *roles)

    def _workers(self) -> list[Slot]:
        return [Slot(lambda url=url: self._start_worker(url), "worker") for url in self._urls[:WORKERS]]  # type: ignore[misc]

    def start(self) -> None:
        """Start all processes."""
        self.fleet.workers = self._workers()
        self.fleet.clients = [
            Slot(lambda number=number, url=url: self._start_client(number, url), "client")  # type: ignore[misc]
            for number, url in enumerate(self._urls[WORKERS:])
        ]
        for slot in (*self.fleet.workers, *self.fleet.clients):
            self.fleet.wait_until_up(slot)

    # The course of it.

    def run(self, injector: Injector, say: Say, is_stopped: IsStopped) -> None:
        """Inject what is planned, when it is due, until somebody stops it."""
        self.began_at = time.monotonic()
        say_at = self.began_at
        faults = list(self.plan.faults)
        long_leases_from_s = self.plan.long_leases_from_s
        least_s, not_before_s = self.plan.ends_s / len(faults) * LEAST_PAUSE, 0.0
        while (faults or self._elapsed < self.plan.ends_s) and not is_stopped():
            self.fleet.supervise()
            injector.tick()
            self._see_to_reader(injector)
            if long_leases_from_s is not None and (not faults or faults[0][0] >= long_leases_from_s):
                long_leases_from_s = None
                self._lengthen_leases(injector)
            # Where the machine is slow the storm takes longer: work goes on between what goes wrong.
            if faults and max(faults[0][0], not_before_s) <= self._elapsed:
                injector.inject(faults.pop(0)[1])
                not_before_s = self._elapsed + least_s
            elif time.monotonic() >= say_at:
                say_at += PROGRESS_EVERY_S
                say(self._progress(len(faults)))
            else:
                self.fleet.pause()
        if is_stopped():
            self.stopped_s = self._elapsed
        injector.let_end()

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self.began_at

    def _progress(self, left: int) -> str:
        try:
            runs = self.scene.count("SELECT count(*) FROM action_retrier_runs")
            waiting = self.scene.count("SELECT count(*) FROM action_retrier_runs WHERE completed_at IS NULL")
        except self.scene.database.errors:
            return f"{self._elapsed:6.0f} s  (the database cannot be asked)"
        injected = len(self.plan.faults) - left
        return (
            f"{self._elapsed:6.0f} s  {runs:7} runs, {waiting:5} of them not ended;"
            f" {injected} of {len(self.plan.faults)} faults injected"
        )

    def _lengthen_leases(self, injector: Injector) -> None:
        """From here on workers are as they are by default."""
        injector.let_end()
        self.fleet.end(self.fleet.workers)
        self.lease_s = injector.lease_s = LONG_LEASE_S
        self.fleet.workers = self._workers()
        for slot in self.fleet.workers:
            self.fleet.wait_until_up(slot, injector.tick)

    def _see_to_reader(self, injector: Injector) -> None:
        if not isinstance(injector, SqliteInjector):
            return
        reader, third = injector.reader, self.plan.ends_s / 3
        if not reader.reads and not reader.read_s and self._elapsed > third / 2:
            reader.begin()
        elif reader.reads and self._elapsed > 1.5 * third:
            reader.end()

    def drain(self, injector: Injector, say: Say) -> None:
        """Have everything end that has been started, and then the workers."""
        say(f"{self._elapsed:6.0f} s  nothing more is started, or injected")
        self.fleet.end(self.fleet.clients)
        give_up_at = time.monotonic() + DRAINS_WITHIN_S
        while time.monotonic() < give_up_at:
            self.fleet.supervise()
            injector.tick()
            with contextlib.suppress(*self.scene.database.errors):
                if is_quiet(self.scene.database):
                    break
            self.fleet.pause()
        else:
            self.fleet.unexpected.append(f"there is work left after {DRAINS_WITHIN_S:.0f} s")
        self._notice_the_dead(injector)
        self.fleet.end(self.fleet.workers)

    def _notice_the_dead(self, injector: Injector) -> None:
        """Wait until every death has been noticed, of those too who left nothing behind."""
        give_up_at = time.monotonic() + 3 * LONG_LEASE_S
        while time.monotonic() < give_up_at:
            self.fleet.supervise()
            injector.tick()
            if self.scene.count("SELECT count(*) FROM action_retrier_workers") == WORKERS:
                return
            self.fleet.pause()


@contextlib.contextmanager
def _place(kind: str, folder: Path) -> Iterator[tuple[CrashDatabase, MakeInjector, list[str]]]:
    """Yield a database, what makes its injector, and how workers and clients reach it."""
    if kind == "sqlite":
        database = SqliteDatabase(f"sqlite:///{folder / 'app.db'}")
        urls = [database.url] * (WORKERS + 2)
        yield database, lambda fleet, lease_s: SqliteInjector(fleet, database, lease_s, folder), urls
        return
    with running_server(fsync="on", track_commit_timestamp="on", log_min_messages="log") as server:
        proxies = [Proxy(server.url) for _ in range(THROUGH_PROXIES + 1)]
        through = [proxy.url for proxy in proxies]
        urls = [*through[:-1], *[server.url] * (WORKERS - THROUGH_PROXIES), server.url, through[-1]]
        on_server = PostgresDatabase(server.url)
        yield on_server, lambda fleet, lease_s: PostgresInjector(fleet, on_server, lease_s, server, proxies), urls
        for proxy in proxies:
            proxy.close()


def _never() -> bool:
    return False


def soak(
    kind: str,
    folder: Path,
    *,
    seed: int,
    duration_s: float,
    rate: float = RATE,
    say: Say = print,
    is_stopped: IsStopped = _never,
) -> Evidence:
    """
    Run a soak, and return what it shows.

    Args:
        kind: ``sqlite`` or ``postgres``.
        folder: An empty one.
        seed: The same one injects the same.
        duration_s: For how long runs are started and faults injected; all of it takes longer.
        rate: How many runs are started in a second, if the machine can.
        say: Told of the progress.
        is_stopped: Whether it is to come to an end before its time.
    """
    with _place(kind, folder) as (database, make_injector, urls):
        scene = Scene(folder, database)
        try:
            return soak_at(
                scene, kind, make_injector, urls,
                seed=seed, duration_s=duration_s, rate=rate, say=say, is_stopped=is_stopped,
            )  # fmt: skip
        finally:
            scene.close()


def soak_at(
    scene: Scene,
    kind: str,
    make_injector: MakeInjector,
    urls: list[str],
    *,
    seed: int,
    duration_s: float,
    rate: float = RATE,
    say: Say = print,
    is_stopped: IsStopped = _never,
) -> Evidence:
    """Run a soak where it is to take place; args as for `soak` and `Storm`."""
    storm = Storm(scene, seed, plan(kind, seed, duration_s), rate, urls)
    injector = make_injector(storm.fleet, LEASE_S)
    scene.prepare()
    injector.prepare()
    storm.start()
    storm.run(injector, say, is_stopped)
    injector.close()
    storm.drain(injector, say)
    took_s = time.monotonic() - storm.began_at
    say(f"{took_s:6.0f} s  all has ended; the oracle is asked")
    evidence = Evidence(kind, seed, storm.plan, storm.fleet, injector, took_s=took_s, stopped_s=storm.stopped_s)
    evidence.broken += examine(scene.database, scene.folder, see=evidence.see)
    evidence.finish(scene)
    return evidence
