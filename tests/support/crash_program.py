"""
The program that the crash tests run in real processes: an App, functions that do as they are told, a way to die.

An action's n-th attempt does what the n-th item of its argument ``script`` says, the last one for ever; a callback's
n-th call does what the n-th item of its context says.
"""

import argparse
import asyncio
import contextlib
import ctypes
import inspect
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import crash_points
from crash_database import crash_database
from crash_witness import Witness

from action_retrier import (
    ActionCtx,
    App,
    Call,
    Failed,
    MutationCtx,
    RunResult,
    Success,
    SyncActionCtx,
    SyncActionRetrier,
    _claiming,
    _leases,
)
from action_retrier._incarnation import Incarnation
from action_retrier._worker import Worker
from action_retrier.drivers.postgres import leases as postgres_leases
from action_retrier.drivers.sqlite import leases as sqlite_leases
from action_retrier.drivers.sqlite import writer
from action_retrier.testing._watch import _apart

LOOK_S = 0.01
"""How often a step that waits for something looks whether it is there."""


def _devour() -> None:
    eaten = []
    while True:
        eaten.append(b"x" * 1_000_000)


LETHAL: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "devour": _devour,  # all the memory that there is: under a limit
}
"""Steps that end the process."""

QUICK_POLICY: dict[str, Any] = {"initial_backoff_ms": 10, "max_backoff_ms": 100}


class Later(Call):
    """A call whose run is due later: after a time, or at an instant that is told as one."""

    def __init__(self, one: Call, delay_ms: float, *, as_instant: bool) -> None:
        super().__init__(one.action, one.args, on_complete=one.on_complete, context=one.context, **one.options)
        self.delay_ms = delay_ms
        self.as_instant = as_instant

    def start(self, app: App, retrier: SyncActionRetrier) -> str:
        """Start its run."""
        start = retrier.run_at if self.as_instant else retrier.run_after
        when = time.time() * 1000 + self.delay_ms if self.as_instant else self.delay_ms
        return start(
            app, when, self.action, self.args, on_complete=self.on_complete, context=self.context, **self.options
        )


class Program:
    """An App on a database, whose functions leave their traces in a directory."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database = crash_database(database)
        self.witness = Witness(folder)
        self.app = App(database)
        self.retrier = SyncActionRetrier(self.app)
        self._register_actions()
        self._register_callbacks()

    def _register_actions(self) -> None:
        @self.app.action(name="work", **QUICK_POLICY)
        async def work(ctx: ActionCtx, script: list[str], tag: str = "") -> int:
            self.witness.tell("begin", ctx.run_id, ctx.attempt)
            crash_points.reach("action.begin")
            await self._do(_item(script, ctx.attempt), ctx)
            return self._end(ctx)

        @self.app.action(name="work_sync", **QUICK_POLICY)
        def work_sync(ctx: SyncActionCtx, script: list[str], tag: str = "") -> int:
            self.witness.tell("begin", ctx.run_id, ctx.attempt)
            crash_points.reach("action.begin")
            self._do_now(_item(script, ctx.attempt), ctx)
            return self._end(ctx)

    def _end(self, ctx: ActionCtx | SyncActionCtx) -> int:
        self.witness.tell("end", ctx.run_id, ctx.attempt)
        crash_points.reach("action.end")
        return ctx.attempt

    async def _do(self, step: str, ctx: ActionCtx) -> None:
        what, _, how_long = step.partition(" ")
        if what == "hold":
            await asyncio.Event().wait()
        elif what == "take":
            await asyncio.sleep(float(how_long))
        elif what == "progress":
            ctx.progress(0.5)
            await asyncio.sleep(float(how_long))
        elif what == "deaf":
            while not self.released:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(LOOK_S)
        else:
            self._do_now(step, ctx)

    def _do_now(self, step: str, ctx: ActionCtx | SyncActionCtx) -> None:
        what, _, how_long = step.partition(" ")
        if what in LETHAL:
            LETHAL[what]()
        elif what == "raise":
            self.witness.tell("raise", ctx.run_id, ctx.attempt)
            raise RuntimeError("told to raise")
        elif what == "hold":
            while not ctx.canceled:
                time.sleep(LOOK_S)
            ctx.raise_if_canceled()
        elif what == "deaf":  # does not react to being stopped
            while not self.released:
                time.sleep(LOOK_S)
        elif what == "grip":  # as a badly written extension does, which lets no other thread run
            ctypes.PyDLL(None).sleep(int(how_long))
        elif what == "progress":
            ctx.progress(0.5)
            time.sleep(float(how_long))
        elif what in {"take", "block"}:  # to block, in an async action, is to keep the event loop
            time.sleep(float(how_long))
        else:
            assert what == "return", step

    @property
    def released(self) -> bool:
        """Whether the test has let the deaf go on."""
        return (self.witness.folder / "released").exists()

    def _register_callbacks(self) -> None:
        @self.app.mutation(name="record")
        def record(ctx: MutationCtx, run_id: str, result: RunResult, context: list[str]) -> None:
            self._begin_callback(run_id)
            ctx.db.execute(*self._effect(run_id, result))
            self._end_callback(run_id, context)

        @self.app.mutation(name="record_async")
        async def record_async(ctx: MutationCtx, run_id: str, result: RunResult, context: list[str]) -> None:
            self._begin_callback(run_id)
            executed = ctx.db.execute(*self._effect(run_id, result))
            if inspect.isawaitable(executed):
                await executed
            self._end_callback(run_id, context)

        @self.app.mutation(name="record_shared", isolation="read committed")
        def record_shared(ctx: MutationCtx, run_id: str, result: RunResult, context: list[str]) -> None:
            record(ctx, run_id, result, context)

    def _begin_callback(self, run_id: str) -> None:
        self.witness.tell("callback", run_id)
        crash_points.reach("callback.begin")

    def _effect(self, run_id: str, result: RunResult) -> tuple[str, tuple[str, str, str]]:
        insert = "INSERT INTO effects (run_id, outcome, shown) VALUES (?, ?, ?)"
        return self.database.sql(insert), (run_id, result.type, _shown(result))

    def _end_callback(self, run_id: str, context: list[str]) -> None:
        # What always does the same need not be counted, which leaves a file behind.
        step = _item(context, self.witness.count(f"callback-{run_id}")) if len(context) > 1 else context[0]
        if step in LETHAL:
            LETHAL[step]()
        elif step == "raise":
            raise RuntimeError("told to raise")
        elif step.startswith("take "):
            time.sleep(float(step.removeprefix("take ")))
        elif step == "deaf":  # keeps its transaction open
            while not self.released:
                time.sleep(LOOK_S)
        crash_points.reach("callback.end")

    def start(self, calls: Iterable[Call]) -> list[str]:
        """Start runs, all in one transaction; what is due later is started by itself."""
        calls = list(calls)
        if len(calls) == 1 and isinstance(calls[0], Later):
            return [calls[0].start(self.app, self.retrier)]
        return self.retrier.run_many(self.app, calls)

    def start_in_own_transaction(self, *script: str, **options: Any) -> str:
        """Start a run together with an order, in a transaction of the user's own."""
        with contextlib.closing(self.database.connect()) as connection:
            (run_id,) = self.retrier.run_many(connection, [call(*script, **options)])
            connection.execute(self.database.sql("INSERT INTO orders (run_id) VALUES (?)"), (run_id,))
            crash_points.reach("own.before_commit")
            connection.commit()
            crash_points.reach("own.after_commit")
        return run_id

    def do(self, what: str, run_id: str) -> None:
        """Steer a run, or all of them."""
        if what.endswith("_all"):
            getattr(self.retrier, what)(self.app, everything=True)
        else:
            getattr(self.retrier, what)(self.app, run_id)

    def register_late(self) -> None:
        """Register one more action, as a module does that is imported late."""

        @self.app.action(name="late")
        async def late() -> None: ...

    def close(self) -> None:
        """Let go of everything."""
        with self.app:
            pass
        self.witness.close()


def _shown(result: RunResult) -> str:
    """Return a result as the audit trail has it."""
    match result:
        case Success(value):
            return f"success:{json.dumps(value)}"
        case Failed(error, error_type):
            return f"failed:{error_type}: {error}"
    return "canceled"


def _item(script: list[str], number: int) -> str:
    return script[min(number, len(script)) - 1]


def call(*script: str, action: str = "work", on_complete: str | None = "record", **options: Any) -> Call:
    """Return the call that starts a run; ``context`` is the callback's script."""
    context = options.pop("context", ["return"])
    return Call(
        action, {"script": list(script)}, on_complete=on_complete, context=context if on_complete else None, **options
    )


def say(*words: object) -> None:
    """Tell the test, at once."""
    print(*words, flush=True)


def announce_workers(then: Callable[[], None] = lambda: None) -> None:
    """Say the id of every incarnation of a worker."""
    register = Incarnation.begin

    async def announced(self: Incarnation) -> None:
        await register(self)
        say("worker", self.claimant.id)
        then()

    Incarnation.begin = announced


def stop_while_claiming() -> None:
    """Have the worker told to stop when it has claimed its first run, and does not know it yet."""
    claim_runs, start = _claiming.claim_runs, Worker.start
    workers = []

    async def noted(self: Worker) -> None:
        workers.append(self)
        await start(self)

    def watched(*args: Any) -> Any:
        # In a transaction, which is a thread's: on the worker's own loop it would wait here for itself.
        claimed = yield from _apart(claim_runs(*args))
        if claimed.runs:
            os.kill(os.getpid(), signal.SIGTERM)
            while not workers[0]._stopping:
                time.sleep(LOOK_S)
        return claimed

    _claiming.claim_runs, Worker.start = watched, noted


def set_lease(lease_s: float, set_one: Callable[[Any, str, Any], object] = setattr) -> None:
    """Make leases shorter in this process, in their usual proportions, to keep tests short."""
    lease_us = round(lease_s * 1_000_000)
    for leases in (postgres_leases, sqlite_leases):
        set_one(leases, "LEASE_US", lease_us)
        set_one(leases, "MARGIN_US", lease_us // 5)
    set_one(_leases, "HEARTBEAT_S", lease_s * 0.3)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("database", metavar="URL")
    arguments.add_argument("--die", metavar="POINT", default="")
    arguments.add_argument("--stop", metavar="POINT", default="", help="like --die, by SIGSTOP")
    arguments.add_argument("--nth", type=int, default=1)
    arguments.add_argument("--lose", metavar="POINT", default="", help="an answer that never comes")
    arguments.add_argument("--lease-s", type=float)
    arguments.add_argument("--checkpoint-always", action="store_true")
    modes = arguments.add_subparsers(dest="mode", required=True)
    worker = modes.add_parser("worker")
    worker.add_argument("--concurrency", type=int, default=100)
    worker.add_argument("--grace-ms", type=float, default=30_000)
    worker.add_argument("--queue", action="append")
    worker.add_argument("--stop-while-claiming", action="store_true")
    worker.add_argument("--register-late", action="store_true")
    start = modes.add_parser("start")
    start.add_argument("script", nargs="+")
    start.add_argument("--own-transaction", action="store_true")
    do = modes.add_parser("do")
    do.add_argument("what")
    do.add_argument("run_id")
    modes.add_parser("open")
    return arguments


def main() -> None:
    """Do what the command line says."""
    given = parser().parse_args()
    if given.lease_s is not None:
        set_lease(given.lease_s)
    if given.checkpoint_always:
        writer._CHECKPOINT_BYTES = writer._CHECKPOINT_PAUSE_S = 0
    program = Program(given.database, Path.cwd())
    if given.lose:
        crash_points.lose(program.app, given.lose)
    if given.die or given.stop:
        by = signal.SIGSTOP if given.stop else signal.SIGKILL
        crash_points.install(program.app, given.die or given.stop, given.nth, by)
    if given.mode == "worker":
        announce_workers(program.register_late if given.register_late else lambda: None)
        if given.stop_while_claiming:
            stop_while_claiming()
        program.app.run_worker_sync(concurrency=given.concurrency, grace_ms=given.grace_ms, queues=given.queue)
    elif given.mode == "do":
        program.do(given.what, given.run_id)
    elif given.mode == "open":
        with program.app:
            say("open")
    elif given.own_transaction:
        say("started", program.start_in_own_transaction(*given.script))
    else:
        say("started", *program.start([call(*given.script)]))


if __name__ == "__main__":
    main()
