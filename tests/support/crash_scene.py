"""Where a crash test takes place: a database with witnesses in it, processes around it, the oracle at the end."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import crash_oracle
from crash_database import CrashDatabase
from crash_processes import LIMIT_S, Process, Processes, eventually
from crash_program import Program, call
from crash_witness import Line, read_log

from action_retrier import Call


class Scene:
    """A directory, and a database."""

    def __init__(self, folder: Path, database: CrashDatabase) -> None:
        self.folder = folder
        self.database = database
        self.processes = Processes(folder)
        self.started: list[str] = []

    def prepare(self) -> None:
        """Create the schema, and the witnesses."""
        program = self.here()
        with program.app:
            self.database.install_witnesses()
        program.close()

    def here(self) -> Program:
        """Return the program for use in the test's own process."""
        return Program(self.database.url, self.folder)

    def start(self, *calls: Call) -> list[str]:
        """Start runs, here."""
        program = self.here()
        with program.app:
            run_ids = program.start(calls)
        program.close()
        self.started += run_ids
        return run_ids

    def run(self, *script: str, **options: Any) -> str:
        """Start one run, here, and return its id."""
        (run_id,) = self.start(call(*script, **options))
        return run_id

    def program(self, *arguments: object) -> Process:
        """Start the program in a process of its own; *arguments* follow the database."""
        return self.processes.start("crash_program.py", self.database.url, *arguments)

    def worker(
        self,
        *options: object,
        die: str = "",
        stop: str = "",
        nth: int = 1,
        lose: str = "",
        lease_s: float | None = None,
    ) -> Process:
        """Start a worker in a process of its own; its lease is as long as the database's are, unless it is given."""
        lease_s = lease_s or self.database.lease_s
        lease = [] if lease_s is None else ["--lease-s", lease_s]
        return self.program("--die", die, "--stop", stop, "--nth", nth, "--lose", lose, *lease, "worker", *options)

    def lines(self, event: str, run_id: str | None = None) -> list[Line]:
        """Return what has happened, to one run or to all."""
        return [
            line for line in read_log(self.folder) if line.event == event and (run_id is None or line.run_id == run_id)
        ]

    def wait_for_executions(self, run_id: str, count: int) -> Line:
        """Wait until an action has begun so often, and return the last beginning."""
        return eventually(lambda: self.lines("begin", run_id)[count - 1 :], what=f"execution {count} of run {run_id}")[
            0
        ]

    def row(self, run_id: str) -> dict[str, Any]:
        """Return a run's row."""
        (row,) = self.rows("SELECT * FROM action_retrier_runs WHERE id = ?", run_id)
        return row

    def rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        """Return what a query gives."""
        with self.database.looking() as look:
            return look.rows(query, *parameters)

    def count(self, query: str) -> int:
        """Return the number that a query gives."""
        with self.database.looking() as look:
            return int(look.value(query))

    def ids(self) -> list[str]:
        """Return the ids of all runs that there are."""
        return [row["id"] for row in self.rows("SELECT id FROM action_retrier_runs ORDER BY id")]

    def cancel(self, run_id: str) -> None:
        """Cancel a run, here."""
        program = self.here()
        with program.app:
            assert program.retrier.cancel(program.app, run_id)
        program.close()

    def make_old(self, run_id: str) -> None:
        """Have a run completed before what retention keeps."""
        with self.database.looking() as look:
            look.write("UPDATE action_retrier_runs SET completed_at = 0 WHERE id = ?", run_id)

    @staticmethod
    def now_us() -> int:
        """Return the instant as the log has it."""
        return time.monotonic_ns() // 1000

    def release(self) -> None:
        """Let the deaf go on."""
        (self.folder / "released").touch()

    def wait_until_complete(self, run_ids: Iterable[str] | None = None, *, within_s: float = LIMIT_S) -> None:
        """Wait until runs, by default all that were started, have ended and called back."""
        wanted = list(self.started if run_ids is None else run_ids)
        eventually(lambda: crash_oracle.is_complete(self.database, wanted), within_s=within_s, what="all runs ended")

    def supervise(self, *options: object, within_s: float = LIMIT_S) -> int:
        """Run one worker, and another whenever it dies, until all runs have ended; return how many have died."""
        worker = self.worker(*options)
        deaths = 0

        def check() -> bool:
            nonlocal worker, deaths
            if not worker.is_running:
                assert worker.wait() != 1, f"it did not die, it failed\n{worker.log.read_text()}"
                deaths += 1
                worker = self.worker(*options)
            return crash_oracle.is_complete(self.database, self.started)

        within_s += 5 * self.database.death_shows_s
        eventually(check, within_s=within_s, what="all runs ended under a supervisor")
        worker.stop()
        return deaths

    def finish(self) -> dict[str, crash_oracle.Story]:
        """Have a fresh worker finish everything, and ask the oracle."""
        program = self.here()
        with program.app, program.app.worker():
            self.wait_until_complete()
            # It has also noticed every death, even of those who left no run behind.
            eventually(lambda: self.count("SELECT count(*) FROM action_retrier_workers") == 1, what="one worker")
        program.close()
        return self.verdict()

    def verdict(self) -> dict[str, crash_oracle.Story]:
        """Ask the oracle, once all have ended."""
        return crash_oracle.check(self.database, self.folder, self.started)

    def check_halfway(self) -> dict[str, crash_oracle.Story]:
        """Ask the oracle for what holds at any moment."""
        return crash_oracle.check(self.database, self.folder, self.started, complete=False)

    def are_complete(self, run_ids: Iterable[str]) -> bool:
        """Tell whether runs have ended and called back."""
        return crash_oracle.is_complete(self.database, run_ids)

    def close(self) -> None:
        """Leave no process behind."""
        self.processes.close()
        self.database.close()
