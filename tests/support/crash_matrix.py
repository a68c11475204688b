"""
What the matrix of failpoints and faults is made of: which cells there are, and the small world that each takes place in.

A world is in the test's own process: an App that has the fault, and another one, of somebody who lives on.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import crash_oracle
from crash_database import CrashDatabase, SqliteDatabase
from crash_processes import eventually
from crash_program import Program, call

from action_retrier import Call, DatabaseUnavailable, RunInProgress, RunNotFound, RunSucceeded
from action_retrier.testing import crash_at, run_until_idle_sync
from action_retrier.testing._failpoints import STEPS, Step
from action_retrier.testing._mortal import know_the_dead
from action_retrier.testing._watch import Watch

Fault = Literal["raise", "done-then-error", "hang", "cancel"]
FAULTS: tuple[Fault, ...] = ("raise", "done-then-error", "hang", "cancel")

LEASE_S = 0.3
_AT_ONCE_S = 0.05
HUNG_S = 4 * LEASE_S
"""For how long a step hangs whose open transaction keeps others from taking over."""
_BURIED_WITHIN_S = 20

CALLERS = ("start", "cancel", "cancel_all", "retry", "retry_all", "cleanup")
NO_RUN = {"lease", "register", "announce", "heartbeat", "migrate"}
REMOVES = {"cleanup", "prune"}


def _is_last(moment: str) -> bool:
    return moment.startswith("after")


WHY_NOT: dict[str, Callable[[Step, str, Fault], bool]] = {
    "between an action and its report is the worker's own code: no connection can be lost there": (
        lambda step, _moment, fault: step.name == "action" and fault in {"raise", "done-then-error"}
    ),
    "an error after it is done is `done-then-error`": lambda _step, moment, fault: (
        fault == "raise" and _is_last(moment)
    ),
    "it is not done yet: an error there is `raise`": (
        lambda _step, moment, fault: fault == "done-then-error" and not _is_last(moment)
    ),
    "no run is touched by it": lambda step, _moment, fault: fault == "cancel" and step.name in NO_RUN,
}
"""Which cells make no sense."""


def why_not(step: Step, moment: str, fault: Fault) -> str:
    """Return why a cell makes no sense; nothing if it does."""
    return next((reason for reason, is_so in WHY_NOT.items() if is_so(step, moment, fault)), "")


@dataclass(frozen=True, slots=True)
class Cell:
    """A failpoint and a fault."""

    point: str
    fault: Fault

    @property
    def step(self) -> Step:
        """What goes wrong."""
        return STEPS[self.point.partition(".")[0]]

    def __str__(self) -> str:
        return f"{self.point}-{self.fault}"


def cells() -> tuple[list[Cell], dict[str, list[str]]]:
    """Return the cells that make sense, and the others by the reason why not."""
    there, left_out = [], dict[str, list[str]]()
    for step in STEPS.values():
        for moment, point in zip(step.moments, step.points, strict=True):
            for fault in FAULTS:
                cell = Cell(point, fault)
                reason = why_not(step, moment, fault)
                if reason:
                    left_out.setdefault(reason, []).append(str(cell))
                else:
                    there.append(cell)
    return there, left_out


@dataclass(frozen=True, slots=True)
class Plan:
    """What is drawn for a cell: the runs, and when the fault happens."""

    calls: list[Call]
    nth: int


NEEDS: dict[str, dict[str, Any]] = {
    "callback_postponed": {"context": ["raise", "return"]},
    "callback_given_back": {"count": 1},  # else a claim beside it knows of it
    "progress": {"script": ["progress 0.25", "return"]},
    "heartbeat": {"script": ["progress 0.25", "return"]},
    "sign_off": {"script": ["hold", "return"]},
    "give_back": {"script": ["raise", "return"], "count": 1},
    "retry": {
        "script": ["raise", "return"],
        "count": 1,
        "initial_backoff_ms": 600_000,
        "max_backoff_ms": 600_000,
    },
    "retry_all": {"script": ["raise", "return"], "max_failures": 0},
    "expire": {"deadline_ms": 1},
}
"""What it takes that a step is sure to be reached."""


def draw(cell: Cell, rng: Random) -> Plan:
    """Draw runs in which the step is sure to be reached."""
    name = cell.step.name
    drawn: dict[str, Any] = {
        "action": rng.choice(["work", "work_sync"]),
        "on_complete": rng.choice(["record", "record_async", "record_shared", None]),
        "script": rng.choice([["return"], ["raise", "return"], ["raise", "raise", "return"]]),
        "context": rng.choice([["return"], ["raise", "return"]]),
        "count": rng.choice([1, 2, 3]),
    }
    if name.startswith("callback") and drawn["on_complete"] is None:
        drawn["on_complete"] = "record"
    drawn |= NEEDS.get(name, {})
    script, count = drawn.pop("script"), drawn.pop("count")
    fails_first = name in {"claim", "report", "action"} and script[0] == "raise"
    nth = rng.choice([1, 2]) if fails_first else 1
    return Plan([call(*script, **drawn) for _ in range(count)], nth)


class World:
    """One cell takes place in it."""

    def __init__(self, database: CrashDatabase, folder: Path, cell: Cell, seed: str) -> None:
        self.database = database
        self.folder = folder
        self.cell = cell
        self.rng = Random(seed)
        self.plan = draw(cell, self.rng)
        self.faulty = Program(database.url, folder)
        self.other = Program(database.url, folder)
        self.started: list[str] = []
        self.removed: set[str] = set()
        self.canceled_before: set[str] = set()
        self.answers: list[tuple[str, bool | None]] = []
        self.reached = 0
        self._fired = threading.Event()
        self._has_the_turn = False
        self._thaw = threading.Event()
        self._cancelers: list[threading.Thread] = []
        self._worker: Any = None
        self._is_quiet = False

    # The fault.

    def reach(self, step: Step, moment: str) -> None:
        """Do what the cell says, once."""
        if self._is_quiet or f"{step.name}.{moment}" != self.cell.point:
            return
        self.reached += 1
        if self.reached != self.plan.nth:
            return
        self._fired.set()
        match self.cell.fault:
            case "raise" | "done-then-error":
                raise DatabaseUnavailable(problem=f"told to fail at {self.cell.point}", remedy="do it again")
            case "hang":
                self._hang()
            case "cancel":
                canceler = threading.Thread(target=self._cancel, daemon=True)
                self._cancelers.append(canceler)
                canceler.start()
                canceler.join(_AT_ONCE_S)  # or it waits for what this very step holds

    @property
    def _keeps_others_out(self) -> bool:
        """Whether the hanging step has what its heir needs: its turn to write to a SQLite file, or rows of a transaction."""
        name, _, moment = self.cell.point.partition(".")
        if self.database.kind == "sqlite":
            is_in_turn = self.cell.step.operation is not None and moment != "after_commit"
            return is_in_turn or name in {"callback", "migrate"}
        return moment == "before_commit" and name in {"progress", "callback_given_back", "give_back", "recover"}

    def _hang(self) -> None:
        """Stop everything of this worker's, as SIGSTOP would: its loop, its heartbeat, and whoever has come here."""
        loop = None if self._worker is None else self._worker._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._thaw.wait)
        timer = threading.Timer(HUNG_S if self._keeps_others_out else _BURIED_WITHIN_S, self._give_up)
        timer.start()
        self._thaw.wait()
        timer.cancel()

    def _give_up(self) -> None:
        """Go on, though nobody has taken over: a callback beside the step may have had the turn to write as it hung."""
        self._has_the_turn = isinstance(self.database, SqliteDatabase) and not self.database.lets_write(within_s=1.0)
        self._thaw.set()

    def _cancel(self) -> None:
        for run_id in [*self.started[:1]] or self._ids()[:1]:
            try:
                self.answers.append((run_id, self.other.retrier.cancel(self.other.app, run_id)))
            except RunNotFound:
                self.answers.append((run_id, None))

    def _ids(self) -> list[str]:
        with self.database.looking() as look:
            return [row["id"] for row in look.rows("SELECT id FROM action_retrier_runs ORDER BY id")]

    # The story.

    def play(self) -> None:
        """Let it happen, then let everything end, and ask the oracle."""
        step = self.cell.step
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            if step.name == "migrate":
                self._play_opening()
            else:
                stack.enter_context(self.other.app)
                stack.enter_context(self.faulty.app)
                self._before()
                watch = Watch(self.faulty.app, self.reach, point=self.cell.point)
                watch.install()
                self._freeze_heartbeat()
                if step.name in CALLERS:
                    self._call()
                else:
                    self._work()
            assert self._fired.is_set(), f"{self.cell.point} was not reached"
            self._finish()
        self._judge()

    def _freeze_heartbeat(self) -> None:
        leases = self.faulty.app._database.leases
        renew = leases.renew

        def renew_unless_frozen(worker: str) -> bool:
            if self.cell.fault == "hang" and self._fired.is_set():
                self._thaw.wait()
            return bool(renew(worker))

        leases.renew = renew_unless_frozen  # type: ignore[method-assign]

    def _start(self) -> None:
        self.started += self.other.start(self.plan.calls)

    def _before(self) -> None:
        """Bring about what the step needs."""
        name = self.cell.step.name
        if name == "start":
            return
        self._start()
        app = self.other.app
        if name in {"callback_claim", "callback_done", "callback_postponed", "callback_given_back"}:
            for run_id in self.started:
                assert self.other.retrier.cancel(app, run_id)
                self.canceled_before.add(run_id)
        elif name in {"cleanup", "prune"}:
            run_until_idle_sync(app)
            self._until_complete()
        elif name == "retry":
            run_until_idle_sync(app)
        elif name == "retry_all":
            run_until_idle_sync(app)
            self._until_complete()
        elif name == "recover":
            with crash_at(app, "claim.after_commit"):
                run_until_idle_sync(app)
            know_the_dead(self.faulty.app._database.leases)
        if name == "prune":
            for run_id in self.started:
                with self.database.looking() as look:
                    look.write("UPDATE action_retrier_runs SET completed_at = 0 WHERE id = ?", run_id)

    def _until_complete(self) -> None:
        while not crash_oracle.is_complete(self.database, self.started):
            run_until_idle_sync(self.other.app)

    def _call(self) -> None:
        """Have the caller do its step; what hangs is let go on after a while."""
        retrier, app = self.faulty.retrier, self.faulty.app
        calls: dict[str, Callable[[], object]] = {
            "start": lambda: self.started.extend(self.faulty.start(self.plan.calls)),
            "cancel": lambda: self.answers.append((self.started[0], retrier.cancel(app, self.started[0]))),
            "cancel_all": lambda: retrier.cancel_all(app, everything=True),
            "retry": lambda: retrier.retry(app, self.started[0]),
            "retry_all": lambda: retrier.retry_all(app, everything=True),
            "cleanup": lambda: retrier.cleanup(app, self.started[0]),
        }
        errors: list[BaseException] = []

        def do() -> None:
            try:
                calls[self.cell.step.name]()
            except Exception as error:  # noqa: BLE001 - looked at below
                errors.append(error)

        caller = threading.Thread(target=do, daemon=True)
        caller.start()
        if self.cell.fault == "hang":
            assert self._fired.wait(20)
            with self.other.app.worker():
                caller.join(LEASE_S)
                self._thaw.set()
                caller.join(20)
        caller.join(20)
        assert not caller.is_alive()
        if self.cell.fault in {"raise", "done-then-error"}:
            # On PostgreSQL some of it is done again by itself.
            assert all(isinstance(error, DatabaseUnavailable) for error in errors), errors
        else:
            assert errors == [] or (self.cell.fault == "cancel" and self.cell.step.name in {"retry", "cleanup"}), errors
        if self.cell.step.name == "start":
            self.started = self._ids()

    def _work(self) -> None:
        """Have a worker come to its step."""
        name, hangs = self.cell.step.name, self.cell.fault == "hang"
        app = self.faulty.app
        prepared = {"give_back": "claim", "callback_given_back": "callback_claim"}.get(name)
        if prepared is not None:
            self._lose_an_answer(f"{prepared}.after_commit")
        grace_ms = 0 if name == "sign_off" else 1_000
        while True:
            session = app.worker(grace_ms=grace_ms)
            make = session.make
            session.make = lambda make=make: self._note(make())  # type: ignore[method-assign, misc]
            with contextlib.suppress(DatabaseUnavailable):
                self._work_once(session, hangs=hangs)
            if self._fired.is_set():
                return

    def _work_once(self, session: Any, *, hangs: bool) -> None:
        if hangs:
            # Its end waits for the thread that hangs, too.
            ended = threading.Thread(target=self._live, args=(session,), daemon=True)
            ended.start()
            assert self._fired.wait(20), f"{self.cell.point} was not reached"
            self._take_over()
            ended.join(20)
            assert not ended.is_alive()
        else:
            self._live(session)

    def _live(self, session: Any) -> None:
        name = self.cell.step.name
        with contextlib.suppress(DatabaseUnavailable), session:
            if name == "announce":

                async def late() -> None: ...

                self.faulty.app.action(name="late")(late)
                self.faulty.retrier.run(self.faulty.app, "somewhere:else")
                (unknown,) = set(self._ids()) - set(self.started)
                self.faulty.retrier.cancel(self.faulty.app, unknown)
                self.started.append(unknown)
                self.canceled_before.add(unknown)
            if name == "sign_off":
                eventually(lambda: self._begun() >= len(self.started), what="all executions")
            elif name not in {"lease", "register"}:
                eventually(self._fired.is_set, within_s=20, what=self.cell.point)
            if self.cell.fault == "hang" and name != "sign_off":
                self._thaw.wait()
            if name not in {"sign_off", "prune"}:
                eventually(lambda: crash_oracle.is_complete(self.database, self.started), what="all runs ended")

    def _begun(self) -> int:
        with self.database.looking() as look:
            rows = look.rows("SELECT id FROM action_retrier_runs WHERE state <> 'pending'")
        return len(rows) if len(rows) == len(crash_oracle.read_log(self.folder)) else 0

    def _note(self, worker: Any) -> Any:
        self._worker = worker
        worker._loop = None
        return worker

    def _take_over(self) -> None:
        """Have another worker live beside the one that hangs, until that is taken for dead and buried."""
        with self.other.app.worker() as worker:
            eventually(
                lambda: self._thaw.is_set() or self._is_buried(worker.id), within_s=2 * _BURIED_WITHIN_S, what="burial"
            )
            was_buried = not self._thaw.is_set()
            self._thaw.set()
            assert was_buried or self._keeps_others_out or self._has_the_turn, (
                "it hung past its lease, and nobody took over"
            )
            if self.cell.step.name not in {"prune", "sign_off"}:
                eventually(lambda: crash_oracle.is_complete(self.database, self.started), what="all runs ended")

    def _is_buried(self, heir: str) -> bool:
        with self.database.looking() as look:
            return {row["id"] for row in look.rows("SELECT id FROM action_retrier_workers")} <= {heir}

    def _lose_an_answer(self, point: str) -> None:
        lost = threading.Event()

        def lose(step: Step, moment: str) -> None:
            if f"{step.name}.{moment}" == point and not lost.is_set():
                lost.set()
                raise DatabaseUnavailable(problem=f"told to fail at {point}", remedy="do it again")

        Watch(self.faulty.app, lose).install()

    def _play_opening(self) -> None:
        Watch(self.faulty.app, self.reach).install()
        errors: list[BaseException] = []

        def open_it() -> None:
            try:
                self.faulty.app.__enter__()
            except DatabaseUnavailable as error:
                errors.append(error)

        opener = threading.Thread(target=open_it, daemon=True)
        opener.start()
        assert self._fired.wait(20)
        if self.cell.fault == "hang":
            opener.join(_AT_ONCE_S)
            self._thaw.set()
        opener.join(20)
        assert bool(errors) == (self.cell.fault != "hang")
        with self.other.app:
            self.database.install_witnesses()
            self._start()
            self._until_complete()
        self.faulty.app.__exit__(None, None, None)

    # The end.

    def _finish(self) -> None:
        self._thaw.set()
        for canceler in self._cancelers:
            canceler.join(20)
            assert not canceler.is_alive()
        self._is_quiet = True
        if self.cell.step.name == "migrate":
            return
        with self.other.app.worker() as worker:
            if self.cell.step.name in REMOVES:
                there = set(self._ids())
                self.removed = set(self.started) - there
                self.started = [run_id for run_id in self.started if run_id in there]
            if self.cell.step.name == "retry":  # else it backs off for long
                for run_id in self.started:
                    with contextlib.suppress(RunInProgress, RunSucceeded):
                        self.other.retrier.retry(self.other.app, run_id)
            eventually(lambda: crash_oracle.is_complete(self.database, self.started), what="all runs ended")
            eventually(lambda: self._is_buried(worker.id), what="one worker")

    def _judge(self) -> None:
        stories = self._stories()
        for run_id, answer in self.answers:
            if answer is None:
                assert self.cell.step.name in {"start", *REMOVES}, "a run that is there was not found"
            elif run_id in stories and not self._is_started_afresh:
                self._check_answer(stories[run_id], answer=answer)

    @property
    def _is_started_afresh(self) -> bool:
        """Whether a run that had ended may be, which changes what was told of it before."""
        name = self.cell.step.name
        return name == "retry_all" or (name == "retry" and self.cell.fault == "cancel")

    def _stories(self) -> dict[str, crash_oracle.Story]:
        return crash_oracle.check(self.database, self.folder, self.started)

    def _check_answer(self, story: crash_oracle.Story, *, answer: bool) -> None:
        """Check that `cancel` has told the truth: True is for ever, and False is of a run that has ended another way."""
        state = story.row["state"]
        if answer:
            assert state == "canceled", f"cancel told True, and the run {state}"
        elif story.row["id"] not in self.canceled_before and self.cell.step.name not in {"cancel", "cancel_all"}:
            assert state in {"succeeded", "failed"}, f"cancel told False, and the run is {state}"

    def _close(self) -> None:
        self._thaw.set()
        self.faulty.witness.close()
        self.other.witness.close()


@contextlib.contextmanager
def emptied(database: CrashDatabase) -> Iterator[CrashDatabase]:
    """Lend a database that several cells share, and leave nothing of the cell's in it."""
    yield database
    with database.looking() as look:
        for table in ("action_retrier_attempts", "action_retrier_runs", "action_retrier_workers"):
            look.write(f"DELETE FROM {table}")  # noqa: S608
    with database.looking() as look:
        for table in ("effects", "orders", "crash_history"):
            look.write(f"DELETE FROM {table}")  # noqa: S608
