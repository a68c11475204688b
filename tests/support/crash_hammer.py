"""A process of many that use one database file at once, in one of the roles that users' programs have."""

import argparse
import contextlib
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crash_program import Program, announce_workers, call, say

from action_retrier import Success


class Hammer(Program):
    """A program that measures how long it waits for what."""

    def __init__(self, database: str, folder: Path) -> None:
        super().__init__(database, folder)
        self.count: Counter[str] = Counter()
        self.worst_s: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def measured(self, what: str) -> Iterator[None]:
        """Note how long the block took."""
        begun_at = time.monotonic()
        yield
        self.worst_s[what] = max(self.worst_s[what], time.monotonic() - begun_at)
        self.count[what] += 1

    def start_one(self) -> None:
        """Start a run through the app, and look at it."""
        with self.measured("start"):
            (run_id,) = self.start([call("return", on_complete=None)])
        with self.measured("read"):
            self.retrier.status(self.app, run_id)

    def order_one(self, connection: Any) -> None:
        """Write an order and start a run for it, in a transaction of the user's own."""
        with self.measured("begin"):
            connection.execute(self.database.begin)
        with self.measured("transaction"):
            (run_id,) = self.retrier.run_many(connection, [call("return", on_complete="record_shared")])
            connection.execute(self.database.sql("INSERT INTO orders (run_id) VALUES (?)"), (run_id,))
            connection.execute("COMMIT")

    def be_first(self) -> None:
        """Use a new database as one of many that do so at once."""
        (run_id,) = self.start([call("return", on_complete=None)])
        with self.app.worker():
            result = self.retrier.wait(self.app, run_id, timeout_ms=30_000)
        assert isinstance(result, Success), result

    def hammer(self, role: str, seconds: float) -> None:
        """Do the same again and again."""
        end_at = time.monotonic() + seconds
        with contextlib.closing(self.database.connect(begins_itself=False)) as connection:
            while time.monotonic() < end_at:
                if role == "start":
                    self.start_one()
                else:
                    self.order_one(connection)

    def work(self) -> None:
        """Be a worker until told otherwise."""
        announce_workers()
        with self.app.worker(concurrency=20):
            sys.stdin.readline()


def main() -> None:
    """Do as the command line says, when the test says so."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("database", metavar="URL")
    arguments.add_argument("role", choices=["first", "start", "order", "work"])
    arguments.add_argument("--seconds", type=float, default=0)
    given = arguments.parse_args()
    hammer = Hammer(given.database, Path.cwd())
    say("ready")
    sys.stdin.readline()
    if given.role == "first":
        hammer.be_first()
    elif given.role == "work":
        hammer.work()
    else:
        hammer.hammer(given.role, given.seconds)
    say("figures", json.dumps({"count": hammer.count, "worst_s": hammer.worst_s}))


if __name__ == "__main__":
    main()
