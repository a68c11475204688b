"""What a soak does to a PostgreSQL server, and to the network before it."""

import contextlib
import time
from collections.abc import Callable

import psycopg
from crash_database import CrashDatabase
from postgres_proxy import Proxy, writes
from postgres_server import Server

from .faults import Injector, Outage
from .fleet import Fleet, now_us
from .plan import Fault

READ_ONLY_S = 2.0
LOSES_FOR_S = 8.0
SLOW_S = 3.0
LATENCY_S = 0.05
HALF_OPEN_S = 4.0
REFUSES_S = 2.0


class Losing:
    """Decides that a number of COMMITs of something written, or their answers, get lost."""

    def __init__(self, proxy: Proxy, most: int) -> None:
        self._proxy = proxy
        self._until = proxy.lost + most

    def __call__(self, transaction: bytes) -> bool:
        return writes(transaction) and self._proxy.lost < self._until


class PostgresInjector(Injector):
    """Injects faults into the server and the proxies; the last proxy is the clients'."""

    def __init__(
        self, fleet: Fleet, database: CrashDatabase, lease_s: float, server: Server, proxies: list[Proxy]
    ) -> None:
        super().__init__(fleet, database, lease_s)
        self._server = server
        self._proxies = proxies
        self._end_losing: dict[Proxy, Callable[[], None]] = {}

    def _execute(self, *statements: str) -> None:
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(self._server.url, autocommit=True, options=options) as connection:
            for statement in statements:
                connection.execute(statement)

    def _through(self, fault: Fault) -> Proxy | None:
        """Return the network of a worker that is at work, having noted what is done to it."""
        slot = self.worker(fault)
        if slot is None:
            return None
        self.fleet.injure(slot, fault.kind)
        return self._proxies[fault.victim]

    # The server.

    def _away(self, fault: Fault, do: Callable[[], None]) -> None:
        begun_at = time.monotonic()
        do()
        self.outages.append(Outage(fault.kind, time.monotonic() - begun_at, now_us()))
        self.count[fault.kind] += 1

    def do_crash(self, fault: Fault) -> None:
        """One backend is killed, and the server crashes."""
        self._away(fault, self._server.crash)

    def do_restart(self, fault: Fault) -> None:
        """Stopped and started as its operators do."""
        self._away(fault, self._server.restart)

    def do_stop_at_once(self, fault: Fault) -> None:
        """Stopped without a goodbye, and started."""
        self._away(fault, lambda: self._server.restart(at_once=True))

    def do_outage(self, fault: Fault) -> None:
        """Stopped, and started only when every lease has run out: whoever has lived through it is not dead."""

        def be_away() -> None:
            self._server.stop()
            back_at = time.monotonic() + 1.5 * self.lease_s + 1
            while time.monotonic() < back_at:
                self.fleet.pause()
            self._server.start()

        self._away(fault, be_away)

    def do_end_sessions(self, fault: Fault) -> None:
        """Each session is ended by an administrator."""
        self._execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        self.count[fault.kind] += 1

    def do_read_only(self, fault: Fault) -> None:
        """Nobody may write for a while."""
        reload = "SELECT pg_reload_conf()"
        self._execute("ALTER SYSTEM SET default_transaction_read_only = on", reload)
        self.count[fault.kind] += 1
        self.later(READ_ONLY_S, lambda: self._execute("ALTER SYSTEM RESET default_transaction_read_only", reload))

    # The network.

    def do_lose_answers(self, fault: Fault) -> None:
        """COMMITs happen, and nobody is told."""
        self._lose(fault, loses_request=False)

    def do_lose_commits(self, fault: Fault) -> None:
        """COMMITs do not arrive."""
        self._lose(fault, loses_request=True)

    def _lose(self, fault: Fault, *, loses_request: bool) -> None:
        proxy = self._proxies[fault.victim]
        if fault.victim < len(self._proxies) - 1:  # its renewals are among what gets lost, and with them its lease
            self.fleet.injure(self.fleet.workers[fault.victim], fault.kind)
        self._end_losing.pop(proxy, lambda: None)()
        before = proxy.lost
        proxy.loses_request, proxy.loses = loses_request, Losing(proxy, fault.amount)

        def end() -> None:
            proxy.loses = lambda _: False
            self.count[fault.kind] += 1
            self.came_of_it[fault.kind] += proxy.lost - before

        def end_once() -> None:
            if self._end_losing.get(proxy) is end:
                self._end_losing.pop(proxy)()

        self._end_losing[proxy] = end
        self.later(LOSES_FOR_S, end_once)

    def do_partition(self, fault: Fault) -> None:
        """Nothing gets through to a worker, or from it, for longer than its lease; nobody is told."""
        proxy = self._through(fault)
        if proxy is not None:
            proxy.swallow()
            self.hold_past_lease(self.fleet.workers[fault.victim], fault, proxy.flow)

    def do_delay(self, fault: Fault) -> None:
        """Each message takes its time."""
        proxy = self._through(fault)
        if proxy is None:
            return
        proxy.latency_s = LATENCY_S
        self.count[fault.kind] += 1

        def end() -> None:
            proxy.latency_s = 0.0

        self.later(SLOW_S, end)

    def do_cut(self, fault: Fault) -> None:
        """All connections of a worker are reset."""
        proxy = self._through(fault)
        if proxy is not None:
            proxy.cut()
            self.count[fault.kind] += 1

    def do_half_open(self, fault: Fault) -> None:
        """The server's ends of all connections are gone, and the worker does not hear of it."""
        proxy = self._through(fault)
        if proxy is not None:
            proxy.half_open()
            self.count[fault.kind] += 1
            self.later(HALF_OPEN_S, proxy.cut)

    def do_refuse(self, fault: Fault) -> None:
        """No connection is accepted for a while."""
        proxy = self._through(fault)
        if proxy is None:
            return
        proxy.refuses = True
        proxy.cut()
        self.count[fault.kind] += 1

        def end() -> None:
            proxy.refuses = False

        self.later(REFUSES_S, end)

    def close(self) -> None:
        """Undo what a crash may have left."""
        super().close()
        with contextlib.suppress(psycopg.Error):
            self._execute("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
