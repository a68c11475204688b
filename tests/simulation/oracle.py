"""
Looks at everything that is committed, and hears everything that clients are told: judges both.

Each commit is compared with the one before it, row by row: the invariants I1 to I9 of `tests.invariants`, and what
only a witness of every step can say: that a callback's writes commit with its mark and with nothing else, that a run
leaves a final state only because somebody asked for it, and that no worker that lives was taken for dead.
"""

import json
import zlib
from collections import Counter, defaultdict
from typing import Any

from action_retrier import Canceled, Completed, Failed, RunResult, RunStatus, Success
from action_retrier._lifecycle import COMPLETED

from .. import invariants
from .process import Process
from .store import Store

_LEASE_S = 10.0
_TOLERANCE_S = 0.4  # of clocks that go at rates of their own, and of messages under way
_FRESH_S = 8.0
_LOOKS_APART_S = 1.0
_STEADY_S = 5.0


class Violation(AssertionError):
    """A promise that was broken."""


class Oracle:
    """Sees all, and keeps the first that is wrong."""

    def __init__(self, store: Store, loop: Any, *, told: bool) -> None:
        self._store = store
        self._loop = loop
        self._tells = told
        self.server: Any = None
        self.trace: list[str] = []
        self.digest = 0
        self.violation: str | None = None
        self.rows: dict[str, dict[str, Any]] = {}
        self._attempts: dict[str, list[dict[str, Any]]] = {}
        self.commits = 0
        self.owed: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.executions: dict[str, list[int]] = defaultdict(list)
        self._first_attempt: dict[str, int] = defaultdict(int)  # the last one before the present start
        self.results: dict[str, list[RunResult]] = defaultdict(list)
        self.known: set[str] = set()
        self.forbidden: set[str] = set()
        self.retries_asked: Counter[str] = Counter()
        self.bulk_retries_asked = 0
        self._bulk_commit = 0
        self.cleanups_asked: set[str] = set()
        self.discards_asked: set[str] = set()
        self.canceled: dict[str, int] = {}  # by which of its results
        self._by_key: dict[str, str] = {}
        self.owners: dict[str, Process] = {}
        self.renewals: dict[str, list[float]] = defaultdict(list)
        self.tampered: set[str] = set()

    # What is said of it.

    def note(self, who: object, what: str) -> None:
        """Keep an event for the digest, by which two replays are compared, and for people."""
        line = f"{self._loop.now_s:10.4f} {who!s:>9} {what}"
        self.digest = zlib.crc32(line.encode(), self.digest)
        if self._tells:
            self.trace.append(line)

    def blame(self, what: str) -> None:
        """Keep what is wrong."""
        self.note("ORACLE", what)
        if self.violation is None:
            self.violation = f"at {self._loop.now_s:.4f} s: {what}"

    def expect(self, truth: object, what: str) -> None:
        if not truth:
            self.blame(what)

    # What is committed.

    def committed(self, process: Process, what: str) -> None:
        """Look at what has changed."""
        touched = self._store.touched
        run_ids, notes = sorted(set(touched["run"])), self._new_notes(sorted(set(touched["note"])))
        workers = sorted(set(touched["worker"]))
        self._store.forget_touched()
        if not run_ids and not notes and not workers:
            return
        self.commits += 1
        try:
            self._look(process, what, run_ids, notes)
        except (AssertionError, KeyError) as error:  # a KeyError is an attempt without a run
            self.blame(f"{type(error).__name__} after {what} of {process}: {error}")
        for worker in workers:
            self._judge_burial(process, worker)

    def _new_notes(self, run_ids: list[str]) -> Counter[str]:
        """Return what callbacks have written, and not undone."""
        if not run_ids:
            return Counter()
        found = self._store.rows(
            "SELECT run_id, count(*) AS count FROM notes WHERE run_id IN (SELECT value FROM json_each(?)) GROUP BY 1",
            json.dumps(run_ids),
        )
        return Counter({row["run_id"]: row["count"] for row in found}) - self.notes

    def _look(self, process: Process, what: str, run_ids: list[str], notes: Counter[str]) -> None:
        asked = json.dumps(run_ids)
        one_of = "IN (SELECT value FROM json_each(?))"
        after = {
            "runs": self._store.rows(f"SELECT * FROM action_retrier_runs WHERE id {one_of}", asked),  # noqa: S608
            "attempts": self._store.rows(f"SELECT * FROM action_retrier_attempts WHERE run_id {one_of}", asked),  # noqa: S608
        }
        before = {
            "runs": [self.rows[run_id] for run_id in run_ids if run_id in self.rows],
            "attempts": [row for run_id in run_ids for row in self._attempts.get(run_id, [])],
        }
        new = {row["id"]: row for row in after["runs"]}
        history: dict[str, list[dict[str, Any]]] = {run_id: [] for run_id in run_ids}
        for row in after["attempts"]:
            history[row["run_id"]].append(row)
        for run_id in run_ids:
            row = new.get(run_id)
            told = (
                "gone" if row is None else f"{row['state']} {row['attempt']} {row['failures']} {row['callback_state']}"
            )
            self.note(process, f"{what}: {run_id[-6:]} {told}")
        invariants.check(after)
        invariants.check_step(before, after)
        self._check_claim([row for row in after["runs"] if self._is_fresh(row)])
        for run_id in run_ids:
            self._check_step(run_id, self.rows.get(run_id), new.get(run_id), history[run_id], notes.pop(run_id, 0))
            if run_id in new:
                self.rows[run_id], self._attempts[run_id] = new[run_id], history[run_id]
            else:
                self.rows.pop(run_id, None)
                self._attempts.pop(run_id, None)
        assert not notes, "I4: a callback wrote without its mark"

    def _is_fresh(self, row: dict[str, Any]) -> bool:
        """Whether this commit has begun an attempt."""
        old = self.rows.get(row["id"])
        return bool(row["state"] == "running" and (old is None or old["attempt"] < row["attempt"]))

    def _check_claim(self, claimed: list[dict[str, Any]]) -> None:
        """I1: only who has a row claims; I8: and of suspects one at a time."""
        if not claimed:
            return
        workers = {row["id"] for row in self._store.rows("SELECT id FROM action_retrier_workers")}
        assert {row["worker"] for row in claimed} <= workers, "I1: a worker without a row has claimed"
        assert sum(row["losses"] > 0 for row in claimed) <= 1, "I8: suspects were claimed together"

    def _check_step(
        self, run_id: str, old: dict[str, Any] | None, new: dict[str, Any] | None, history: Any, notes: int
    ) -> None:
        was_done = old is not None and old["callback_state"] == "done"
        is_done = new is not None and new["callback_state"] == "done"
        called = int(is_done and not was_done)
        assert notes == called, f"I4: {notes} callbacks wrote where {called} were marked done"
        self.notes[run_id] += notes
        assert run_id not in self.forbidden, "I6: it was rolled back"
        if new is None:
            assert old is None or run_id in self.cleanups_asked, "I1: it was removed, and nobody asked for that"
            if old is not None and old["callback_state"] == "pending":
                assert run_id in self.discards_asked, "I4: its callback was pending"
                self.owed[run_id] -= 1
            return
        if new["callback_worker"] is not None and old is not None and old["callback_worker"] != new["callback_worker"]:
            assert old["callback_worker"] is None, "I4: a callback was taken from whoever calls it"
            assert new["callback_tries"] == old["callback_tries"] + 1, "I4: a try of a callback was not counted"
        was, now = (None if old is None else old["state"]), new["state"]
        if now in COMPLETED and was not in COMPLETED:
            self.results[run_id].append(self._result(new))
            self.owed[run_id] += bool(new["on_complete"])
            if now == "succeeded":
                told = json.loads(new["result"])["attempt"]
                assert told == new["attempt"], f"I2: attempt {told} ended it, and {new['attempt']} was current"
        if was in COMPLETED and now not in COMPLETED:
            assert self._was_asked_to_retry(run_id), f"I3, I5: it was {was}, and nobody asked to retry it"
            self._first_attempt[run_id] = new["attempt"]
            self.canceled.pop(run_id, None)
        if was == "running" and now == "pending" and old is not None:
            assert new["failures"] >= old["failures"], "I2, I8: a failure was forgotten"
            has_failed = any(one["number"] == new["attempt"] for one in history)
            if new["failures"] > old["failures"]:
                assert has_failed, "I2: a failure of no current attempt"
            else:
                began = new["attempt"] in self.executions[run_id]
                assert not began, "I2, I8: only attempts that have not begun are given back"

    def _was_asked_to_retry(self, run_id: str) -> bool:
        """Whether somebody asked for this one, or for many at once, which one commit may answer at any time."""
        if self.retries_asked[run_id] > 0:
            self.retries_asked[run_id] -= 1
            return True
        if self._bulk_commit != self.commits and self.bulk_retries_asked > 0:
            self.bulk_retries_asked -= 1
            self._bulk_commit = self.commits
        return self._bulk_commit == self.commits

    @staticmethod
    def _result(row: dict[str, Any]) -> RunResult:
        match row["state"]:
            case "succeeded":
                return Success(json.loads(row["result"]))
            case "canceled":
                return Canceled()
        return Failed(row["error"], row["error_type"])

    def executed(self, process: Process, run_id: str, attempt: int) -> None:
        """An attempt has begun."""
        self.note(process, f"executes {run_id[-6:]} {attempt}")
        self.executions[run_id].append(attempt)
        row = self.rows.get(run_id)
        if row is None:
            self.expect(run_id in self.cleanups_asked, f"{run_id}: executed, and never committed")
            return
        most = json.loads(row["options"])["max_failures"] + 1
        began = {number for number in self.executions[run_id] if number > self._first_attempt[run_id]}
        self.expect(len(began) <= most, f"I8: {run_id}: {len(began)} executions, and {most} allowed")
        again = len(self.executions[run_id]) - len(set(self.executions[run_id]))
        self.expect(again == 0, f"I2: {run_id}: attempt {attempt} was executed twice")

    def called_back(self, run_id: str, result: RunResult) -> None:
        """A callback is called; the result that it is given must be one that the run had, or is getting."""
        row = self.rows.get(run_id)
        if row is not None and row["state"] in COMPLETED:
            self.expect(result == self.results[run_id][-1], f"I4: {run_id}: called back with {result!r}")

    # Leases.

    def renewed(self, worker: str, process: Process) -> None:
        self.owners[worker] = process
        self.renewals[worker].append(self._loop.now_s)

    def _judge_burial(self, process: Process, worker: str) -> None:
        """A worker's row has been deleted: by itself, or because it is dead."""
        self.note(process, f"deletes worker {worker[:6]}")
        owner = self.owners.get(worker)
        if owner is None or owner is process or not owner.is_alive or worker in self.tampered:
            return
        silent_s = self._loop.now_s - self.renewals[worker][-1]
        if self.server.lost_lock_for(worker) >= _LOOKS_APART_S - _TOLERANCE_S and self._is_steady(process):
            return
        self.expect(
            silent_s > _LEASE_S - _TOLERANCE_S and self._may_judge(process),
            f"I1: {process} buried worker {worker[:6]} of {owner}, which renewed its lease {silent_s:.1f} s ago; "
            f"may it judge: {self._may_judge(process)}",
        )

    def _is_steady(self, process: Process) -> bool:
        """Whether it has not lost its own session lately, as whoever it thinks dead may have."""
        line = self.server.line_of.get(process)
        at_s = None if line is None else line.reopened_at_s
        return at_s is None or self._loop.now_s - at_s >= _STEADY_S - _TOLERANCE_S

    def _may_judge(self, process: Process) -> bool:
        """Whether it has renewed a lease of its own without a gap for one lease."""
        for worker, owner in self.owners.items():
            if owner is process:
                since = last = self._loop.now_s
                for at in reversed(self.renewals[worker]):
                    if last - at > _FRESH_S + _TOLERANCE_S:
                        break
                    since = last = at
                if self._loop.now_s - since >= _LEASE_S - _TOLERANCE_S:
                    return True
        return False

    # What clients are told.

    def told_status(self, run_id: str, status: RunStatus, seen: int, canceled: int | None) -> None:
        """
        A client has been told.

        Args:
            seen: How many results the run had when it asked.
            canceled: What `canceled` said of it then.
        """
        if isinstance(status, Completed):
            results = self.results[run_id][max(0, seen - 1) :]
            self.expect(status.result in results, f"{run_id}: told {status.result!r}, and it had {results!r}")
        elif canceled is not None and self.canceled.get(run_id) == canceled:
            self.blame(f"I5: {run_id}: told {status!r} after its cancel")

    def told_result(self, run_id: str, result: RunResult) -> None:
        self.expect(result in self.results[run_id], f"{run_id}: told {result!r}, and it had {self.results[run_id]!r}")

    def told_key(self, key: str, run_id: str) -> None:
        """A run was started with a key, which has one run for as long as there is that run."""
        before = self._by_key.setdefault(key, run_id)
        self.expect(before == run_id or before in self.cleanups_asked, f"key {key} has two runs, {before} and {run_id}")
        self._by_key[key] = run_id

    def told_missing(self, run_id: str) -> None:
        self.expect(run_id in self.cleanups_asked, f"I1: {run_id}: there was a run, and now it is not found")

    def told_canceled(self, run_id: str) -> None:
        row = self.rows.get(run_id)
        if row is None:
            self.expect(run_id in self.cleanups_asked, f"I1: {run_id} is gone")
        elif row["state"] == "canceled":
            self.canceled[run_id] = len(self.results[run_id])
        else:
            self.expect(Canceled() in self.results[run_id], f"I5: {run_id}: cancel said True, and it is {row['state']}")

    def told_not_canceled(self, run_id: str) -> None:
        self.expect(
            self.results[run_id] or run_id in self.cleanups_asked,
            f"I5: {run_id}: cancel said False, and it never ended",
        )

    # The end.

    def is_settled(self) -> bool:
        """Whether every run has ended and called back."""
        return all(row["completed_at"] is not None and row["callback_state"] != "pending" for row in self.rows.values())

    def unsettled(self) -> list[str]:
        return [
            f"{row['id']} {row['action']} {row['state']} attempt {row['attempt']} callback {row['callback_state']} "
            f"due {row['due_at']} {row['callback_due_at']} of {row['worker']} {row['callback_worker']}"
            for row in self.rows.values()
            if row["completed_at"] is None or row["callback_state"] == "pending"
        ]

    def check_end(self) -> None:
        """Look at everything once more."""
        snapshot = {
            name: self._store.rows(f"SELECT * FROM action_retrier_{name}")  # noqa: S608
            for name in ("runs", "attempts", "workers")
        }
        try:
            invariants.check(snapshot)
        except (AssertionError, KeyError) as error:
            self.blame(f"in the end: {error}")
        there = {row["id"] for row in snapshot["runs"]}
        for run_id in self.known - there - self.cleanups_asked:
            self.blame(f"I1: {run_id} is lost")
        for run_id, owed in self.owed.items():
            self.expect(self.notes[run_id] == owed, f"I4: {run_id}: {self.notes[run_id]} callbacks, {owed} owed")
        notes = Counter(row["run_id"] for row in self._store.rows("SELECT run_id FROM notes"))
        self.expect(+notes == +self.notes, "I4: what callbacks wrote is there")
