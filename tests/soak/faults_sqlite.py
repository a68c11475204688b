"""What a soak does to a file, and to whoever writes it."""

import contextlib
import functools
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from crash_database import SqliteDatabase
from postgres_server import ends_with_us

from .faults import Injector
from .fleet import Fleet, Slot
from .plan import Fault

STRACE = shutil.which("strace")
ATTACHED_S = 0.5
ERROR_S = 1.5
LOCKED_S = 2.0
DIES_WITHIN_S = 10.0
TRACED = ("disk full", "I/O error", "kill at a write")
READER_SHARE = 3
"""One that reads does so for a third of the soak."""
SHRUNK_BYTES = 8 * 1024 * 1024


@functools.cache
def may_trace() -> bool:
    """Tell whether strace is there, and may attach itself to what is no child of its own."""
    if STRACE is None:
        return False
    with subprocess.Popen(["tail", "-f", "/dev/null"], stdin=subprocess.DEVNULL) as victim:
        attach = [STRACE, "-qq", "--attach", str(victim.pid), "--trace", "kill"]
        with subprocess.Popen(attach, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as trace:
            try:
                trace.wait(ATTACHED_S)
            except subprocess.TimeoutExpired:
                may = True
                trace.terminate()
            else:
                may = False
        victim.kill()
    return may


class SqliteInjector(Injector):
    """Injects faults by strace, and by other users of the file."""

    def __init__(self, fleet: Fleet, database: SqliteDatabase, lease_s: float, folder: Path) -> None:
        super().__init__(fleet, database, lease_s)
        self._folder = folder
        self._traces = 0
        self._wal = Path(f"{database.path}-wal")
        self.reader = Reader(database)
        if not may_trace():
            self.cannot = dict.fromkeys(TRACED, "no strace that may attach itself")

    def _trace(self, slot: Slot, *inject: str) -> "tuple[subprocess.Popen[bytes], Path]":
        self._traces += 1
        output = self._folder / f"strace-{self._traces}.txt"
        calls = sorted({one.split(":")[0] for one in inject})
        command = [
            *ends_with_us("TERM"),
            str(STRACE),
            "--follow-forks",
            "-qq",
            "--output",
            str(output),
            "--attach",
            str(slot.process.pid),
        ]
        command += ["--trace", ",".join(calls), *(part for one in inject for part in ("--inject", one))]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=quiet, stderr=quiet, start_new_session=True), output

    def _have_fail(self, fault: Fault, *inject: str) -> None:
        slot = self.worker(fault)
        if slot is None or not may_trace():
            return
        self.fleet.injure(slot, fault.kind)
        trace, output = self._trace(slot, *inject)

        def end() -> None:
            trace.send_signal(signal.SIGTERM)
            trace.wait()
            failed = output.read_text("utf-8", "replace").count("(INJECTED)") if output.exists() else 0
            output.unlink(missing_ok=True)
            self.count[fault.kind] += 1
            self.came_of_it[fault.kind] += failed

        self.later(ERROR_S, end)

    def do_disk_full(self, fault: Fault) -> None:
        """No write of a worker finds space."""
        self._have_fail(fault, "pwrite64:error=ENOSPC")

    def do_IO_error(self, fault: Fault) -> None:  # noqa: N802 - named after the fault
        """Some of the writes, and of the fsyncs, of a worker fail."""
        first = fault.amount % 7 + 1
        self._have_fail(fault, f"pwrite64:error=EIO:when={first}+{first}", f"fdatasync:error=EIO:when={first}+2")

    def do_kill_at_a_write(self, fault: Fault) -> None:
        """SIGKILL of a worker in the middle of what it writes."""
        slot = self.worker(fault)
        if slot is None or not may_trace():
            return
        process = slot.process
        trace, output = self._trace(slot, f"pwrite64:signal=KILL:when={fault.amount}")
        give_up_at = time.monotonic() + DIES_WITHIN_S
        self.fleet.injure(slot, fault.kind)
        while process.is_running and time.monotonic() < give_up_at:
            self.tick()  # else whoever was stopped with the write lock in his hands would stay so
            self.fleet.pause()
        if process.is_running:
            trace.terminate()
            self.fleet.kill(slot)
        else:
            self.came_of_it[fault.kind] += 1
        self.count[fault.kind] += 1
        trace.wait()
        output.unlink(missing_ok=True)

    def do_write_lock(self, fault: Fault) -> None:
        """Somebody else writes, and takes his time."""

        def hold(connection: Any) -> None:
            connection.execute("BEGIN IMMEDIATE")
            threading.Event().wait(LOCKED_S)
            connection.execute("ROLLBACK")

        self._as_a_user(fault.kind, hold)

    def tick(self) -> None:
        """Look at the WAL as well."""
        super().tick()
        with contextlib.suppress(FileNotFoundError):
            self.reader.see(self._wal.stat().st_size)

    def close(self) -> None:
        """Stop reading."""
        super().close()
        self.reader.end()


class Reader:
    """Somebody who reads for long: the WAL cannot be emptied meanwhile."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._begun_at = self._ended_at = 0.0
        self.reads = False
        self.read_s = 0.0
        self.largest = 0
        """Of the WAL while it read, in bytes; *otherwise* before and after."""
        self.otherwise = 0
        self.shrunk_after_s: float | None = None

    def begin(self) -> None:
        """Read from now on."""
        self._connection = self._database.connect(begins_itself=False)
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT count(*) FROM effects").fetchone()
        self.reads, self._begun_at = True, time.monotonic()

    def end(self) -> None:
        """Read no more."""
        if self.reads:
            self._connection.close()
            self.reads, self._ended_at = False, time.monotonic()
            self.read_s = self._ended_at - self._begun_at

    def see(self, size: int) -> None:
        """Take note of the WAL's size."""
        if self.reads or (self._ended_at and self.shrunk_after_s is None):
            self.largest = max(self.largest, size)
            if not self.reads and size <= SHRUNK_BYTES:
                self.shrunk_after_s = time.monotonic() - self._ended_at
        else:
            self.otherwise = max(self.otherwise, size)
