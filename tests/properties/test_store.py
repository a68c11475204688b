"""
Any sequence of events: the database and a small model agree, and I1 to I9 hold after every step.

The model is what a reader of the documentation would expect, in plain Python; the stores are a real
SQLite file and a real PostgreSQL server. Attempts and tries that own nothing any more are kept, and report late.
"""

import contextlib
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from action_retrier._lifecycle import (
    COMPLETED,
    Finish,
    NotBegun,
    Outcome,
    Raised,
    Succeeded,
    TimedOut,
    WorkerStopped,
)
from action_retrier._ops.claims import ANY_LOSSES, Claimant
from action_retrier._ops.control import Filter, cancel_run, cancel_runs, clean_up_run, prune_runs, retry_run, retry_runs
from action_retrier._ops.reports import (
    CallbackMark,
    apply_moves,
    expire_runs,
    finish_callback,
    lost_attempts,
    postpone_callback,
    return_callbacks,
)
from action_retrier._ops.starts import start_runs
from action_retrier._statements import Rows
from action_retrier.errors import IdempotencyConflict, RunInProgress, RunNotFound, RunSucceeded
from action_retrier.testing import ManualClock

from .. import invariants
from ..stores import NAMESPACE, SYSTEMS, Store, open_system

ACTIONS = ("charge", "refund")
MS = 1000


@dataclass
class Run:
    """What the model knows of a run."""

    id: str
    action: str
    queue: str
    priority: int
    on_complete: str
    key: str | None
    args: str
    max_failures: int
    backoff_ms: int
    deadline_ms: int | None
    due: int
    deadline: int | None
    state: str = "pending"
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    worker: str | None = None
    completed: int | None = None
    starts: int = 1
    began: int = 0
    callback: str = "none"
    tries: int = 0
    caller: str | None = None
    callback_losses: int = 0
    callback_due: int | None = None
    history: dict[int, str] = field(default_factory=dict)

    @property
    def urgency(self) -> tuple[int, int]:
        return -self.priority, self.due

    @property
    def order(self) -> tuple[int, int, str]:
        return *self.urgency, self.id


@dataclass
class Held:
    """An attempt, or the try of a callback, that some worker believes to own."""

    worker: Claimant
    row: dict[str, Any]


class StoreMachine(RuleBasedStateMachine):
    """Runs, workers, time and accidents, in any order."""

    on = "sqlite"
    steps: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.system = open_system(self.on, Path(self._folder.name))
        self.system.keep_looking()
        self.store = Store(self.system, "sync", self.clock)
        self.runs: dict[str, Run] = {}
        self.workers: list[Claimant] = []
        self.held: list[Held] = []
        self.calling: list[Held] = []
        self.notes: list[str] = []
        self.before = self.store.snapshot()

    def teardown(self) -> None:
        self.store.close()
        self.system.close()
        self._folder.cleanup()

    @initialize()
    def first_worker(self) -> None:
        self.hire_more(knows_callbacks=True)

    @property
    def now(self) -> int:
        return self.clock.now_us()

    def pick(self, data: st.DataObject, kind: str = "run") -> Run:
        return self.runs[data.draw(st.sampled_from(sorted(self.runs)), kind)]

    def owns(self, held: Held) -> bool:
        run = self.runs.get(held.row["id"])
        return run is not None and (run.state, run.attempt) == ("running", held.row["attempt"])

    def calls(self, held: Held) -> bool:
        run = self.runs.get(held.row["id"])
        return run is not None and (run.caller, run.tries) == (held.worker.id, held.row["callback_tries"])

    @staticmethod
    def pick_held(data: st.DataObject, held: list[Held], is_current: Callable[[Held], bool]) -> Held:
        """Pick one that owns something, if there is one, more often than one that is late."""
        current = [one for one in held if is_current(one)]
        among = current if current and data.draw(st.integers(0, 2), "any if 0") else held
        return among[data.draw(st.integers(0, len(among) - 1), "which")]

    # Starting.

    starts = st.fixed_dictionaries(
        {
            "action": st.sampled_from(ACTIONS),
            "queue": st.sampled_from(["default", "default", "default", "mail"]),
            "priority": st.integers(-1, 1),
            "on_complete": st.sampled_from(["done", "", "done"]),
            "max_failures": st.integers(0, 2),
            "initial_backoff_ms": st.sampled_from([0, 10, 1000]),
            "deadline_ms": st.sampled_from([None, None, 5, 2000]),
            "delay_ms": st.sampled_from([0, 0, 0, 5, 1000]),
        }
    )

    def expect(self, run_id: str, options: dict[str, Any], *, key: str | None = None, args: str = "{}") -> None:
        due = self.now + options["delay_ms"] * MS
        limit = options["deadline_ms"]
        self.runs[run_id] = Run(
            id=run_id,
            action=options["action"],
            queue=options["queue"],
            priority=options["priority"],
            on_complete=options["on_complete"],
            key=key,
            args=args,
            max_failures=options["max_failures"],
            backoff_ms=options["initial_backoff_ms"],
            deadline_ms=limit,
            due=due,
            deadline=None if limit is None else due + limit * MS,
        )

    @rule(options=starts)
    def start(self, options: dict[str, Any]) -> None:
        self.expect(self.store.start(base=1, **options), options)

    @rule(options=starts, commit=st.booleans())
    def start_in_a_users_transaction(self, options: dict[str, Any], *, commit: bool) -> None:
        """I6: it exists from the user's commit on, or never."""
        connection = self.system.connect()
        note = f"user {len(self.notes)} {self.now} {len(self.runs)}"
        self.system.write_note(connection, note)
        start = self.store.starting(base=1, **options)
        self.store.through(connection, start_runs, NAMESPACE, [start])
        assert start.id not in {row["id"] for row in self.system.table("runs")}
        if commit:
            connection.commit()
            self.expect(start.id, options)
            self.notes.append(note)
        connection.close()

    @rule(options=starts, key=st.sampled_from("kl"), args=st.sampled_from(["{}", '{"a":1}']))
    def start_with_a_key(self, options: dict[str, Any], key: str, args: str) -> None:
        """One run for one key and action, while it is there."""
        owners = [run for run in self.runs.values() if (run.action, run.key) == (options["action"], key)]
        try:
            run_id = self.store.start(base=1, key=key, args=args, **options)
        except IdempotencyConflict as error:
            assert [run.id for run in owners] == [error.run_id]
            assert owners[0].args != args
            return
        if owners:
            assert run_id == owners[0].id
            assert owners[0].args == args
        else:
            self.expect(run_id, options, key=key, args=args)

    # Workers.

    @rule(knows_callbacks=st.booleans(), queues=st.sampled_from([None, None, ("default",)]))
    @precondition(lambda self: len(self.workers) < 3)
    def hire(self, *, knows_callbacks: bool, queues: tuple[str, ...] | None) -> None:
        self.hire_more(knows_callbacks=knows_callbacks, queues=queues)

    def hire_more(self, *, knows_callbacks: bool, queues: tuple[str, ...] | None = None) -> None:
        mutations = ("done",) if knows_callbacks else ()
        self.workers.append(self.store.worker(*ACTIONS, mutations=mutations, queues=queues))

    def may_take(self, worker: Claimant, run: Run) -> bool:
        return (
            run.state == "pending"
            and run.due <= self.now
            and (run.deadline is None or run.deadline > self.now)
            and (worker.queues is None or run.queue in json.loads(worker.queues))
            and (run.on_complete == "" or run.on_complete in json.loads(worker.mutations))
        )

    @rule(data=st.data(), count=st.integers(1, 3), max_losses=st.sampled_from([0, 1, ANY_LOSSES]))
    @precondition(lambda self: self.workers)
    def claim(self, data: st.DataObject, count: int, max_losses: int) -> None:
        """I2, I7: what is due, in order, to one worker only; suspects one at a time."""
        self.take(data.draw(st.sampled_from(self.workers), "worker"), count, max_losses)

    def take(self, worker: Claimant, count: int, max_losses: int) -> None:
        due = sorted((run for run in self.runs.values() if self.may_take(worker, run)), key=lambda run: run.order)
        suspects = [run for run in due if 0 < run.losses <= max_losses][:1]
        fresh = [run for run in due if run.losses == 0][: count - len(suspects)]
        expected = self.next_due_of(worker, max_losses)

        assert self.store.next_due(worker, max_losses).work_us == expected
        claimed = self.store.claim(worker, count, max_losses)

        assert [row["id"] for row in claimed.suspects] == [run.id for run in suspects]
        if self.on == "sqlite":
            assert [row["id"] for row in claimed.runs] == [run.id for run in fresh]
        else:
            self.check_choice(claimed.runs, of=due, first=fresh)
        assert claimed.registered
        for row in [*claimed.suspects, *claimed.runs]:
            run = self.runs[row["id"]]
            run.state, run.worker = "running", worker.id
            run.attempt += 1
            run.began += 1
            assert (row["attempt"], row["failures"], row["losses"]) == (run.attempt, run.failures, run.losses)
            self.held.append(Held(worker, row))

    def check_choice(self, rows: Rows, *, of: list[Run], first: list[Run]) -> None:
        """
        Those that are the first by priority and due time.

        Which of several that fell due in the same microsecond is PostgreSQL's choice, by where their rows are: one that
        was started later is the first if it got the place of one that was removed.
        """
        chosen = [self.runs[row["id"]] for row in rows]
        assert [run.urgency for run in chosen] == [run.urgency for run in first]
        assert len({run.id for run in chosen}) == len(chosen)
        assert all(run.losses == 0 and any(run is one for one in of) for run in chosen)
        assert chosen == sorted(chosen, key=lambda run: run.order)

    def next_due_of(self, worker: Claimant, max_losses: int) -> int | None:
        known = [
            run
            for run in self.runs.values()
            if run.state == "pending"
            and (worker.queues is None or run.queue in json.loads(worker.queues))
            and (run.on_complete == "" or run.on_complete in json.loads(worker.mutations))
            and run.losses <= max_losses
        ]
        deadlines = [run.deadline for run in self.runs.values() if run.state == "pending" and run.deadline is not None]
        return min((at - self.now for at in [*(run.due for run in known), *deadlines]), default=None)

    outcomes = st.sampled_from(
        [
            Succeeded('"ok"'),
            Succeeded("null"),
            Raised("E", "e", "tb"),
            Raised("E", "e", retryable=False),
            Raised("E", "e", retry_after_ms=0),
            TimedOut(5),
            WorkerStopped(),
            NotBegun(),
        ]
    )

    @rule(
        data=st.data(),
        outcome=outcomes,
        callback=st.sampled_from(["with it", "with it, raising", "with it, committing", "later"]),
    )
    @precondition(lambda self: self.held)
    def report(self, data: st.DataObject, outcome: Outcome, callback: str) -> None:
        """I2, I3, I4: the current attempt settles its run, with or without its callback; any other changes nothing."""
        self.settle(self.pick_held(data, self.held, self.owns), outcome, callback)

    def settle(self, held: Held, outcome: Outcome, callback: str) -> None:
        run = self.runs.get(held.row["id"])
        owns = self.owns(held)
        deadline_in = held.row["deadline_in"]
        if owns and run is not None and run.deadline is not None:
            deadline_in = run.deadline - self.now
        row = held.row | {"deadline_in": deadline_in}
        settled = self.store.settled(row, held.worker, outcome)
        calls = isinstance(settled.move, Finish) and row["on_complete"] and callback != "later"

        if calls:
            self.complete_with_callback(row, held, outcome, run if owns else None, callback)
        else:
            assert bool(self.store.write(apply_moves, [settled]).owned) is owns
        if owns:
            assert run is not None
            self.expect_settled(run, outcome, deadline_in)
            if calls:
                run.tries = 1
                self.expect_called(run, done=callback == "with it")

    def complete_with_callback(self, row: Any, held: Held, outcome: Outcome, run: Run | None, callback: str) -> None:
        done = self.store.settled(row, held.worker, outcome, CallbackMark("done", tries=1))
        try:
            with self.store.transaction() as transaction:
                owned = bool(transaction.run(apply_moves, [done]).owned)
                assert owned is (run is not None)
                if owned and run is not None:
                    with transaction.user_code():
                        transaction.note(f"{run.id} {run.starts}")
                        if callback == "with it, raising":
                            raise ZeroDivisionError
                        if callback == "with it, committing":
                            with contextlib.suppress(Exception):
                                transaction.connection.commit()
        except (ZeroDivisionError, RuntimeError):
            late = self.store.settled(row, held.worker, outcome, CallbackMark("pending", 1, 250_000, "E: e"))
            assert self.store.write(apply_moves, [late]).owned

    def expect_called(self, run: Run, *, done: bool) -> None:
        if done:
            run.callback, run.callback_due = "done", None
            self.notes.append(f"{run.id} {run.starts}")
        else:
            run.callback_due = self.now + 250_000

    def expect_settled(self, run: Run, outcome: Outcome, deadline_in: int | None) -> None:
        """What the documentation says follows from the end of an attempt; every base is 1, every jitter 0."""
        if isinstance(outcome, NotBegun):
            run.state, run.worker = "pending", None
            run.began -= 1
            return
        if isinstance(outcome, Succeeded):
            self.expect_end(run, "succeeded")
            return
        run.failures += 1
        run.history[run.attempt] = self.error_type(outcome)
        raised = outcome if isinstance(outcome, Raised) else None
        delay = run.backoff_ms * MS if raised is None or raised.retry_after_ms is None else 0
        out_of_time = deadline_in is not None and delay >= deadline_in
        if run.failures > run.max_failures or out_of_time or (raised is not None and not raised.retryable):
            self.expect_end(run, "failed")
            return
        run.state, run.worker, run.losses = "pending", None, 0
        run.due = self.now + delay if delay else run.due

    @staticmethod
    def error_type(outcome: Outcome) -> str:
        return outcome.error_type if isinstance(outcome, Raised) else type(outcome).__name__

    def expect_end(self, run: Run, state: str, callback_losses: int = 0) -> None:
        run.state, run.completed = state, self.now
        run.callback = "pending" if run.on_complete else "none"
        run.callback_due = self.now if run.on_complete else None
        run.tries, run.callback_losses = 0, callback_losses if run.on_complete else 0
        run.losses = 0

    @rule(data=st.data())
    @precondition(lambda self: self.workers)
    def die(self, data: st.DataObject) -> None:
        """I1, I8: a worker is declared dead; what it had is settled, and its reports come too late."""
        self.bury(data.draw(st.sampled_from(self.workers), "worker"))

    def bury(self, worker: Claimant) -> None:
        self.workers.remove(worker)
        lost = [run for run in self.runs.values() if (run.state, run.worker) == ("running", worker.id)]

        assert self.store.lose(worker) == len(lost)
        assert self.store.lose(worker) == 0

        for run in lost:
            run.failures += 1
            run.losses += 1
            run.history[run.attempt] = "WorkerLost"
            delay = run.backoff_ms * MS
            if run.failures > run.max_failures or (run.deadline is not None and delay >= run.deadline - self.now):
                self.expect_end(run, "failed", callback_losses=run.losses)
            else:
                run.state, run.worker = "pending", None
                run.due = self.now + delay if delay else run.due
        for run in self.runs.values():
            if run.caller == worker.id:
                run.caller = None
                run.callback_losses += 1
                run.callback_due = self.store.row(run.id)["callback_due_at"]
                assert self.now < run.callback_due <= self.now + 90_000 * MS

    @rule(
        options=starts,
        outcome=outcomes.filter(lambda one: not isinstance(one, NotBegun)),
        callback=st.sampled_from(["with it", "with it, raising", "with it, committing", "later"]),
    )
    def whole_life(self, options: dict[str, Any], outcome: Outcome, callback: str) -> None:
        """Few random sequences get as far as a callback: this takes all that is due to its end."""
        self.start(options | {"on_complete": "done"})
        self.the_database_is_what_the_model_says()
        worker = next((one for one in self.workers if one.mutations != "[]" and one.queues is None), None)
        if worker is None:
            return
        self.take(worker, 3, ANY_LOSSES)
        self.the_database_is_what_the_model_says()
        for held in self.held:
            if self.owns(held) and held.worker is worker:
                self.settle(held, outcome, callback)
                self.the_database_is_what_the_model_says()
        self.take_callbacks(worker, 3, ANY_LOSSES)

    @rule(options=starts, max_losses=st.sampled_from([0, ANY_LOSSES]), outcome=outcomes, data=st.data())
    def be_succeeded(self, options: dict[str, Any], max_losses: int, outcome: Outcome, data: st.DataObject) -> None:
        """A worker dies with its runs, an heir takes them, and the dead one goes on as if nothing had happened."""
        self.start(options | {"delay_ms": 0, "max_failures": 2})
        self.the_database_is_what_the_model_says()
        self.hire_more(knows_callbacks=True)
        zombie = self.workers[-1]
        self.take(zombie, 3, ANY_LOSSES)
        self.take_callbacks(zombie, 3, ANY_LOSSES)
        self.the_database_is_what_the_model_says()
        self.bury(zombie)
        self.the_database_is_what_the_model_says()
        assert not self.store.claim(zombie).registered
        assert self.store.claim_callbacks(zombie) == []
        self.clock.advance(100_000)
        self.hire_more(knows_callbacks=True)
        self.take(self.workers[-1], 3, max_losses)
        self.take_callbacks(self.workers[-1], 3, max_losses)
        for held in [one for one in self.held if one.worker is zombie]:
            self.the_database_is_what_the_model_says()
            self.settle(held, outcome, "later")
        for held in [one for one in self.calling if one.worker is zombie]:
            self.the_database_is_what_the_model_says()
            self.end_call(held, data.draw(st.sampled_from(["commits", "raises"]), "end"))

    # Callbacks.

    @rule(data=st.data(), count=st.integers(1, 3), max_losses=st.sampled_from([0, ANY_LOSSES]))
    @precondition(lambda self: self.workers)
    def claim_callbacks(self, data: st.DataObject, count: int, max_losses: int) -> None:
        """I4: due, known, called by nobody: and counted before the call."""
        self.take_callbacks(data.draw(st.sampled_from(self.workers), "worker"), count, max_losses)

    def take_callbacks(self, worker: Claimant, count: int, max_losses: int) -> None:
        due = sorted(
            (
                run
                for run in self.runs.values()
                if run.callback == "pending"
                and run.caller is None
                and run.callback_due is not None
                and run.callback_due <= self.now
                and run.callback_losses <= max_losses
                and run.on_complete in json.loads(worker.mutations)
            ),
            key=lambda run: (run.callback_due, run.id),
        )

        rows = self.store.claim_callbacks(worker, count, max_losses)

        times = sorted(self.runs[row["id"]].callback_due or 0 for row in rows)
        assert times == [run.callback_due for run in due[:count]]
        assert {row["id"] for row in rows} <= {run.id for run in due}
        for row in rows:
            run = self.runs[row["id"]]
            run.tries += 1
            run.caller = worker.id
            assert (row["callback_tries"], row["callback_losses"]) == (run.tries, run.callback_losses)
            assert row["state"] == run.state
            self.calling.append(Held(worker, row))

    @rule(data=st.data(), end=st.sampled_from(["commits", "raises", "is given back"]))
    @precondition(lambda self: self.calling)
    def call_back(self, data: st.DataObject, end: str) -> None:
        """I4: the current try marks and writes in one transaction; any other finds nothing to mark."""
        self.end_call(self.pick_held(data, self.calling, self.calls), end)

    def end_call(self, held: Held, end: str) -> None:
        run = self.runs.get(held.row["id"])
        tries = held.row["callback_tries"]
        own = run if self.calls(held) else None
        if end == "is given back":
            if own is not None or run is None or run.caller != held.worker.id:
                self.store.write(return_callbacks, [held.row["id"]], held.worker.id)
                if own is not None:
                    own.caller, own.tries, own.callback_due = None, own.tries - 1, self.now
            return
        try:
            with self.store.transaction() as transaction:
                marked = transaction.run(finish_callback, held.row["id"], held.worker.id, tries)
                assert marked is (own is not None)
                if own is not None:
                    transaction.note(f"{own.id} {own.starts}")
                if end == "raises":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            parameters = (held.row["id"], held.worker.id, tries, 250_000, "E: e")
            assert self.store.write(postpone_callback, *parameters) is (own is not None)
        if own is not None:
            own.caller, own.callback_losses = None, 0
            self.expect_called(own, done=end == "commits")

    # Steering.

    @rule(data=st.data(), commit=st.sampled_from([True, False, False]))
    @precondition(lambda self: self.runs)
    def cancel(self, data: st.DataObject, *, commit: bool) -> None:
        """I5: True from the commit on, and for good; I6: a cancel that is rolled back was none."""
        run = self.pick(data)
        expected = run.state not in COMPLETED
        try:
            with self.store.transaction() as transaction:
                assert transaction.run(cancel_run, NAMESPACE, run.id) is expected
                if not commit:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        if expected:
            self.expect_canceled(run)

    def expect_canceled(self, run: Run) -> None:
        if run.state == "running":
            run.history[run.attempt] = "Canceled"
        self.expect_end(run, "canceled")

    @rule(queue=st.sampled_from(["mail", "mail", "nobody's"]))
    def cancel_all(self, queue: str) -> None:
        runs = [run for run in self.runs.values() if run.queue == queue and run.state not in COMPLETED]

        assert self.store.write(cancel_runs, NAMESPACE, Filter(queue=queue)) == len(runs)

        for run in runs:
            self.expect_canceled(run)

    @rule(count=st.integers(1, 3))
    def expire(self, count: int) -> None:
        late = sorted(
            (
                run
                for run in self.runs.values()
                if run.state == "pending" and (run.deadline or self.now + 1) <= self.now
            ),
            key=lambda run: run.deadline or 0,
        )

        assert self.store.write(expire_runs, NAMESPACE, count) == min(count, len(late))

        states = {row["id"]: row["state"] for row in self.system.table("runs")}
        ended = [run for run in late if states[run.id] == "failed"]
        assert [run.deadline for run in ended] == [run.deadline for run in late[:count]]
        for run in ended:
            losses = run.losses
            self.expect_end(run, "failed")
            run.losses = losses

    @rule(data=st.data())
    @precondition(lambda self: self.runs)
    def retry(self, data: st.DataObject) -> None:
        """I2, I3, I4, I8: afresh, with new numbers; never a success, never while a callback is pending."""
        run = self.pick(data)
        error: type[Exception] | None = None
        if run.callback == "pending" or run.state == "running":
            error = RunInProgress
        elif run.state == "succeeded":
            error = RunSucceeded
        try:
            self.store.write(retry_run, NAMESPACE, run.id)
        except (RunInProgress, RunSucceeded) as raised:
            assert type(raised) is error
            return
        assert error is None
        if run.state in COMPLETED:
            self.expect_retried(run)
        elif run.attempt > 0 and run.due > self.now:
            run.due = self.now

    def expect_retried(self, run: Run) -> None:
        run.state, run.worker, run.completed = "pending", None, None
        run.failures = run.losses = run.began = 0
        run.due = self.now
        run.deadline = None if run.deadline_ms is None else self.now + run.deadline_ms * MS
        run.callback, run.tries, run.callback_due, run.callback_losses = "none", 0, None, 0
        run.starts += 1

    @rule(action=st.sampled_from(ACTIONS))
    def retry_all(self, action: str) -> None:
        runs = [
            run
            for run in self.runs.values()
            if run.action == action and run.state in {"failed", "canceled"} and run.callback != "pending"
        ]

        assert self.store.write(retry_runs, NAMESPACE, Filter([action])) == len(runs)

        for run in runs:
            self.expect_retried(run)

    @rule(data=st.data(), discard=st.booleans())
    @precondition(lambda self: self.runs)
    def clean_up(self, data: st.DataObject, *, discard: bool) -> None:
        """I1, I4, I9: only what has completed, and never a pending callback by accident."""
        run = self.pick(data)
        allowed = run.state in COMPLETED and (run.callback != "pending" or discard)
        try:
            discarded = self.store.write(clean_up_run, NAMESPACE, run.id, discard_callback=discard)
        except RunInProgress:
            assert not allowed
            return
        assert allowed
        assert discarded is (run.callback == "pending")
        del self.runs[run.id]

    @rule(age_ms=st.sampled_from([0, 10, 1000]), count=st.integers(1, 3))
    def prune(self, age_ms: int, count: int) -> None:
        """I9: completed, no pending callback, older than the limit: the oldest first."""
        old = sorted(
            run.completed
            for run in self.runs.values()
            if run.completed is not None and run.completed < self.now - age_ms * MS and run.callback != "pending"
        )

        assert self.store.write(prune_runs, NAMESPACE, age_ms * MS, count) == min(count, len(old))

        there = {row["id"] for row in self.system.table("runs")}
        gone = [run for run in self.runs.values() if run.id not in there]
        assert sorted(run.completed or 0 for run in gone) == old[:count]
        assert all(run.callback != "pending" for run in gone)
        for run in gone:
            del self.runs[run.id]

    @rule(ms=st.sampled_from([1, 10, 1000, 100_000]))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)

    # What holds after every step.

    @invariant()
    def a_step_is_counted(self) -> None:
        self.steps[self.on] += 1

    @invariant()
    def the_database_is_what_the_model_says(self) -> None:
        after = self.store.snapshot()
        invariants.check(after)
        invariants.check_step(self.before, after)
        self.before = after
        assert {row["id"] for row in after["runs"]} == set(self.runs), "I1: never lost, never made up"
        for row in after["runs"]:
            self.check_run(self.runs[row["id"]], row)
        told: dict[str, dict[int, str]] = {run_id: {} for run_id in self.runs}
        for attempt in after["attempts"]:
            told[attempt["run_id"]][attempt["number"]] = attempt["error_type"]
        assert told == {run.id: run.history for run in self.runs.values()}
        assert {row["id"] for row in after["workers"]} == {worker.id for worker in self.workers}
        assert self.system.notes() == self.notes, "I4, I6: callbacks' and users' writes, each exactly once"

    def check_run(self, run: Run, row: dict[str, Any]) -> None:
        expected = {
            "state": run.state,
            "attempt": run.attempt,
            "failures": run.failures,
            "losses": run.losses,
            "due_at": run.due,
            "deadline_at": run.deadline,
            "completed_at": run.completed,
            "callback_state": run.callback,
            "callback_tries": run.tries,
            "callback_losses": run.callback_losses,
            "callback_worker": run.caller,
            "callback_due_at": run.callback_due,
        }
        assert {name: row[name] for name in expected} == expected
        if run.state in {"pending", "running"}:
            assert row["worker"] == run.worker
        assert run.began <= run.max_failures + 1, "I8"

    @invariant()
    def every_attempt_knows_whether_it_owns_its_run(self) -> None:
        asked = [(held.row["id"], held.row["attempt"]) for held in self.held]
        lost = {(run_id, attempt) for run_id, attempt, _ in self.store.read(lost_attempts, asked)}
        owners = {(run.id, run.attempt) for run in self.runs.values() if run.state == "running"}

        assert lost == set(asked) - owners
        assert owners <= set(asked), "I1: running means that somebody executes it"

    @invariant()
    def an_unknown_run_stays_unknown(self) -> None:
        try:
            self.store.status("01890000-0000-7000-8000-000000000000")
        except RunNotFound:
            return
        raise AssertionError


class PostgresMachine(StoreMachine):
    on = "postgres"


class PgbouncerMachine(StoreMachine):
    on = "pgbouncer"


MACHINES = {machine.on: machine for machine in (StoreMachine, PostgresMachine, PgbouncerMachine)}
EXAMPLE_STEPS = 40
SHARDS = 4
STEPS = int(os.environ.get("ACTION_RETRIER_TEST_STEPS", "3000"))
"""On each database, in all shards; CI makes 50,000: `make properties`."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("on", SYSTEMS)
def test_any_sequence_of_events_keeps_the_promises(
    on: str, shard: int, record_property: Callable[[str, object], None]
) -> None:
    """The steps are counted: Hypothesis ends many an example before it is as long as it may be."""
    machine, wanted = MACHINES[on], math.ceil(STEPS / SHARDS)
    made = Counter[str]()
    machine.steps = made
    while made[on] < wanted:
        count = math.ceil((wanted - made[on]) / EXAMPLE_STEPS)
        run_state_machine_as_test(machine, settings=examples(count))
    record_property("steps", made[on])


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        stateful_step_count=EXAMPLE_STEPS,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
