"""
The users of a soak, a process of several threads: they start runs, and some ask, cancel and start afresh.

What each is told goes to a log. It ends when its standard input does.
"""

import argparse
import collections
import contextlib
import random
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from crash_database import crash_database
from crash_program import Program, say
from crash_told import Teller
from linearizability import GONE, IN_PROGRESS, UNKNOWN

from action_retrier import Completed, Failed, RunInProgress, RunNotFound, RunStatus, RunSucceeded, Success
from action_retrier.errors import DatabaseUnavailable, InvalidContext
from tests.soak.calls import some_call, watched_call

GOES_WRONG = (DatabaseUnavailable, InvalidContext, psycopg.Error, sqlite3.Error, OSError)
"""What a user may be told while everything breaks: of what was asked for nobody knows whether it happened."""
BATCH = 40
MOST_WAITING = 2000
"""How many runs may be waiting before whoever starts more pauses."""
ROLLED_BACK = 0.04
PAUSE_S = 0.02
AFTER_ERROR_S = 0.2


class Client:
    """What the threads of one process share."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.program = Program(given.database, Path.cwd())
        self.beside = crash_database(given.beside or given.database)
        self.teller = Teller(Path.cwd())
        self.name = given.name
        self.rate = given.rate
        self.seed = given.seed
        self.ended = threading.Event()
        self.recent: collections.deque[str] = collections.deque(maxlen=30)
        """Runs that are asked about."""

    def run(self, starters: int, owners: int, askers: int) -> None:
        """Do it all until told to end."""
        roles = [(self._start_many, starters), (self._start_in_own_transactions, owners), (self._ask, askers)]
        threads = [
            threading.Thread(target=self._guarded, args=(role, f"{self.name}-{role.__name__}-{number}"))
            for role, count in roles
            for number in range(count)
        ]
        with self.program.app:
            for thread in threads:
                thread.start()
            say("client")
            sys.stdin.read()
            self.ended.set()
            for thread in threads:
                thread.join()
        say("ended")

    def _guarded(self, role: Callable[[random.Random, str], None], name: str) -> None:
        try:
            role(random.Random(f"{self.seed} {name}"), f"{name}-{time.monotonic_ns()}")
        except BaseException:
            say("unexpected", name)
            traceback.print_exc()
            raise

    # The many.

    def _start_many(self, rng: random.Random, name: str) -> None:
        for number in self._paced():
            tag = f"{name}-{number}"
            calls = [some_call(rng, tag) for _ in range(BATCH)]
            call = self.teller.invoke("start", tag, count=BATCH)
            try:
                self.teller.answer(call, self.program.start(calls))
            except GOES_WRONG:
                self._suffer(call)

    def _start_in_own_transactions(self, rng: random.Random, name: str) -> None:
        database = self.program.database
        for number in self._paced():
            tag = f"{name}-{number}"
            calls = [some_call(rng, tag) for _ in range(BATCH)]
            call = self.teller.invoke("start", tag, count=BATCH)
            try:
                with contextlib.closing(database.connect()) as connection:
                    run_ids = self.program.retrier.run_many(connection, calls)
                    self.teller.intend(call, run_ids)
                    for run_id in run_ids:
                        connection.execute(database.sql("INSERT INTO orders (run_id) VALUES (?)"), (run_id,))
                    if rng.random() < ROLLED_BACK:
                        connection.rollback()
                        self.teller.answer(call, "rolled back")
                    else:
                        connection.commit()
                        self.teller.answer(call, run_ids)
            except GOES_WRONG:
                self._suffer(call)

    def _paced(self) -> Any:
        """Count, at the rate that is wanted, and never so fast that too many are waiting."""
        due_at = time.monotonic()
        number = 0
        while not self.ended.is_set():
            now = time.monotonic()
            if now < due_at or self._are_too_many():
                self.ended.wait(max(due_at - now, PAUSE_S))
                continue
            due_at = max(due_at, now - 1) + BATCH / self.rate
            yield number
            number += 1

    def _are_too_many(self) -> bool:
        query = "SELECT count(*) AS n FROM (SELECT 1 AS one FROM action_retrier_runs WHERE state = 'pending' AND losses = 0 LIMIT ?) AS w"
        try:
            with contextlib.closing(self.beside.connect()) as connection:
                (count,) = connection.execute(self.beside.sql(query), (MOST_WAITING,)).fetchone() or (0,)
        except GOES_WRONG:
            self.ended.wait(AFTER_ERROR_S)
            return True
        return bool(count >= MOST_WAITING)

    # Those that ask.

    def _ask(self, rng: random.Random, name: str) -> None:
        number = 0
        while not self.ended.is_set():
            number += 1
            if not self.recent or rng.random() < 0.25:
                self._start_one(rng, f"{name}-{number}")
            else:
                run_id = rng.choice(list(self.recent))
                kind = rng.choices(["status", "cancel", "retry"], [5, 2, 3])[0]
                self._ask_about(kind, run_id)
            self.ended.wait(rng.uniform(0, PAUSE_S))

    def _start_one(self, rng: random.Random, tag: str) -> None:
        """With a key it is done again until there is an answer, as its user would."""
        key = tag if rng.random() < 0.5 else None
        one = watched_call(rng, tag, key)
        while True:
            call = self.teller.invoke("start", tag, count=1, key=key)
            try:
                run_ids = self.program.start([one])
            except GOES_WRONG:
                self._suffer(call)
                if key is None or self.ended.is_set():
                    return
            else:
                self.teller.answer(call, run_ids)
                self.recent += run_ids
                return

    def _ask_about(self, kind: str, run_id: str) -> None:
        app, retrier = self.program.app, self.program.retrier
        call = self.teller.invoke(kind, run_id)
        try:
            if kind == "status":
                answer = _shown(retrier.status(app, run_id))
            elif kind == "cancel":
                answer = str(retrier.cancel(app, run_id)).lower()
            else:
                retrier.retry(app, run_id)
                answer = "ok"
        except (RunInProgress, RunSucceeded) as error:
            answer = type(error).__name__
        except RunNotFound:
            answer = GONE
        except GOES_WRONG:
            self._suffer(call)
            return
        self.teller.answer(call, answer)

    def _suffer(self, call: str) -> None:
        self.teller.answer(call, UNKNOWN)
        self.ended.wait(AFTER_ERROR_S)


def _shown(status: RunStatus) -> str:
    """Return a status as the audit trail has it."""
    if not isinstance(status, Completed):
        return IN_PROGRESS
    match status.result:
        case Success(value):
            return f"success:{value}"
        case Failed(error, error_type):
            return f"failed:{error_type}: {error}"
    return "canceled"


def main() -> None:
    """Do what the command line says."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("database", metavar="URL")
    arguments.add_argument("--beside", metavar="URL", help="how the database is reached to look how much is waiting")
    arguments.add_argument("--name", required=True)
    arguments.add_argument("--seed", required=True)
    arguments.add_argument("--rate", type=float, default=20, help="runs a second that each thread starts")
    arguments.add_argument("--starters", type=int, default=0)
    arguments.add_argument("--owners", type=int, default=0)
    arguments.add_argument("--askers", type=int, default=0)
    given = arguments.parse_args()
    Client(given).run(given.starters, given.owners, given.askers)


if __name__ == "__main__":
    main()
