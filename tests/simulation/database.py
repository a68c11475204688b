"""One process's way to the server: the protocol `action_retrier.drivers.Database`, where anything may get lost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from action_retrier._statements import Op
from action_retrier.drivers import IDLE_S

from .leases import DEADLINE_S, on_host, on_server
from .loop import Lane
from .process import Process
from .server import Changes, Loan, Server, Unavailable

_LOAN_PATIENCE_S = 30.0


class _Call:
    """Something that is asked of the database, on its way there and back."""

    def __init__(
        self,
        server: Server,
        process: Process,
        there: Lane,
        do: Callable[[], Any],
        *,
        waits: bool,
        lends: bool,
        fate: str,
    ) -> None:
        self.answer: asyncio.Future[Any] = server.loop.create_future()
        self._server = server
        self._process = process
        self._there = there
        self._do = do
        self._waits = waits
        self._lends = lends
        self._fate = fate
        self._has_begun = False

    def arrive(self) -> None:
        if self._server.is_down:
            self._reply(None, Unavailable("the database went down"))
        elif self._waits:
            self._server.when_free(self._begin)
        else:
            self._begin()

    def _is_wanted(self) -> bool:
        """Whether it is done: what was given up on is not, nor what a dead process asked, unless a server has it."""
        if self.answer.cancelled() and not self._server.is_host and not self._lends:
            return self._process.rng.random() < 0.5
        return not self.answer.done() and (self._process.is_alive or not (self._server.is_host or self._lends))

    def _begin(self) -> None:
        if self._server.is_host and self._process.freezes:
            self._server.loop.call_on(self._there, 0, self.arrive)  # whoever would do it is stopped
        elif self._is_wanted():
            self._has_begun = True
            try:
                self._reply(self._do(), None)
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
                self._reply(None, error)

    def _reply(self, result: Any, error: BaseException | None) -> None:
        if self._fate == "after":
            result, error = None, Unavailable("the answer was lost")
        server, process = self._server, self._process
        server.loop.call_on(process.lane, server.way_s(process), self._deliver, result, error)

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        if self._process.is_cut_off:
            result, error = None, Unavailable("the answer was lost on its way")
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(error)

    def give_up(self) -> None:
        if not self._has_begun and not self.answer.done():
            self.answer.set_exception(Unavailable("its turn did not come"))


class SimulatedDatabase:
    """The protocol, as far as workers and clients need it."""

    url = location = "simulated"
    mutation_colours = frozenset({"async", "sync"})
    works_beside = True
    installation = "simulated"

    def __init__(self, server: Server, process: Process) -> None:
        self._server = server
        self._process = process
        self._loop = server.loop
        self.turn = object()
        self.changes = Changes(server, process)
        if server.is_host:
            self.leases = on_host(server.files, process)
        else:
            self.leases = on_server(server, process, self.read)
        # On a host the thread that writes is the process's, and stops and dies with it.
        self._there = self._loop.world
        if server.is_host:
            self._there = Lane(process)
            process.adopt(self._there)

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def is_transient(self, error: BaseException) -> bool:
        return False

    @staticmethod
    def in_user_thread() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @staticmethod
    def executor(handle: Any, *, writes: bool) -> None:
        return None

    # Calls.

    async def travel(self) -> None:
        """Let a message take its time."""
        await asyncio.sleep(self._server.way_s(self._process))

    def _choose(self) -> str:
        rng, server = self._process.rng, self._server
        if rng.random() >= server.lies:
            return "honest"
        chosen = rng.choice(["before", "after", "late"])
        server.injected[f"call fails {chosen}" if chosen != "late" else "call takes long"] += 1
        return chosen

    async def _call(
        self, do: Callable[[], Any], *, waits: bool = True, lends: bool = False, patience_s: float | None = None
    ) -> Any:
        """
        Have something done there, and hear of it.

        Args:
            do: What is done; it has the database to itself.
            waits: Whether it has to wait for whoever has a transaction open.
            lends: Whether it opens one itself.
        """
        server, process = self._server, self._process
        fate = self._choose()
        if not server.reachable(process):
            await asyncio.sleep(DEADLINE_S * process.rng.random())
            raise Unavailable("the database cannot be reached")
        if fate == "before":
            await self.travel()
            raise Unavailable("the call failed before it was done")
        way_s = server.way_s(process)
        if fate == "late":
            way_s = process.rng.choice([0.1, 1.0, 12.0]) * process.rng.random()
        call = _Call(server, process, self._there, do, waits=waits, lends=lends, fate=fate)
        self._loop.call_on(self._there, way_s, call.arrive)
        timer = None if patience_s is None else self._loop.call_later(patience_s, call.give_up)
        try:
            return await call.answer
        finally:
            if timer is not None:
                timer.cancel()

    async def read(self, make: Callable[[], Op[Any]]) -> Any:
        return await self._call(lambda: self._server.read(make), waits=False)

    async def write(self, make: Callable[[], Op[Any]], *, patience_s: float | None = None, apart: bool = False) -> Any:
        return await self._call(lambda: self._server.write(self._process, make), patience_s=patience_s)

    @contextlib.asynccontextmanager
    async def transaction(self, isolation: str = "read committed", *, idle_s: float = IDLE_S) -> AsyncIterator[Loan]:
        loans: list[Loan] = []

        def lend() -> Loan:
            loans.append(self._server.lend(self._process, self.travel, idle_s))
            return loans[0]

        try:
            yield await self._call(lend, lends=True, patience_s=_LOAN_PATIENCE_S)
        except BaseException:
            for loan in loans:
                loan.give_back("rollback")
                self._server.end(loan, "rollback")
            raise
        (loan,) = loans
        if loan.is_open:
            await self._commit(loan)

    async def _commit(self, loan: Loan) -> None:
        fate, server = self._choose(), self._server
        loan.give_back("commit")
        try:
            await self.travel()
        except BaseException:
            # Whoever has given it back waits no more; what he asked for is on its way.
            server.end(loan, "commit" if server.is_host or self._process.rng.random() < 0.5 else "rollback")
            raise
        if fate == "before" or loan.is_lost or not server.reachable(self._process):
            server.end(loan, "rollback")
            raise Unavailable("the connection was lost before the commit")
        server.end(loan, "commit")
        await self.travel()
        if fate == "after" or self._process.is_cut_off:
            raise Unavailable("the answer to the commit was lost")
