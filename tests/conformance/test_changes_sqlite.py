"""Wake-ups on SQLite: whoever commits to the file, on whatever table, rings."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from action_retrier.drivers.sqlite import changes as module
from action_retrier.drivers.sqlite.users import Users

from ..stores import LIMIT_S, Bell, Store, until


@pytest.fixture
def bell(store: Store) -> Iterator[Bell]:
    bell = Bell(store)
    assert bell.rings()  # the first look
    yield bell
    bell.subscription.close()


def test_a_commit_of_somebody_else_rings(store: Store, bell: Bell) -> None:
    """Another process, or a user's own connection."""
    connection = store.system.connect()
    store.system.write_note(connection, "theirs")
    connection.commit()

    assert bell.rings()


def test_only_others_tell_that_there_may_be_something_to_claim(
    store: Store, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim takes the one write lock: not after each commit of our own, too."""
    monkeypatch.setattr(module, "_OURS_S", LIMIT_S)
    bell.subscription.was_told = False
    store.start()
    assert bell.rings()
    store.database.changes._tell()
    assert not bell.subscription.was_told

    monkeypatch.setattr(module, "_OURS_S", 0)
    connection = store.system.connect()
    store.system.write_note(connection, "theirs")
    connection.commit()

    until(lambda: bell.subscription.was_told)


def test_what_is_committed_while_nobody_listens_is_heard_of_afterwards(store: Store, bell: Bell) -> None:
    """A worker switches its bell on, then asks what is due: nothing falls between."""
    bell.subscription.active = False
    connection = store.system.connect()
    store.system.write_note(connection, "theirs")
    connection.commit()
    assert not bell.has_rung()

    bell.subscription.active = True

    assert bell.rings()


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), OSError(116, "Stale file handle")])
def test_a_look_that_fails_is_no_end_of_looking(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Only a hint is lost; the next look has a new connection."""
    changes: Any = store.database.changes
    connect, failed = changes._connect, []

    def fail_once() -> sqlite3.Connection:
        if not failed:
            failed.append(1)
            raise error
        return connect()

    monkeypatch.setattr(changes, "_connect", fail_once)
    bell = Bell(store)

    assert bell.rings()
    bell.subscription.close()
    assert failed == [1]


class SlowDisk:
    """A database of which a commit is written to the WAL at once, and shows when that is on the disk; and its clock."""

    def __init__(self, folder: Path, sync_s: float) -> None:
        self.path = folder / "slow.db"
        self.shows_at_s = 100 + sync_s
        self.asked: list[float] = []
        self.heard: list[float] = []
        self.is_over = threading.Event()
        self._now_s = 0.0
        self._wal = Path(f"{self.path}-wal")
        self._wal.write_bytes(b"old")

    def connect(self) -> Any:
        return self

    def execute(self, text: str) -> Any:
        assert text == "PRAGMA data_version"
        self.asked.append(self._now_s)
        return self

    def fetchone(self) -> tuple[int]:
        return (1 if self._now_s < self.shows_at_s else 2,)

    def close(self) -> None:
        pass

    def hear(self) -> None:
        self.heard.append(self._now_s)

    # The clock, in the place of the module `time`: it is as late as whoever looks has slept.

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, pause_s: float) -> None:
        before_s, self._now_s = self._now_s, self._now_s + pause_s
        if before_s < 100 <= self._now_s:
            self._wal.write_bytes(b"old and new")
        if self._now_s > 200:
            self.is_over.wait()


@pytest.mark.parametrize("sync_s", [0.0, 0.03, 0.4, 3.0])
def test_a_commit_is_heard_of_when_it_shows_however_long_the_disk_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_s: float
) -> None:
    """It is stamped when it is written: whoever then asked for a moment only would never hear of it."""
    disk = SlowDisk(tmp_path, sync_s)
    monkeypatch.setattr(module, "time", disk)
    changes = module.SqliteChanges(disk.path, disk.connect, Users())
    changes.subscribe(disk.hear).active = True

    until(lambda: disk.monotonic() > 200)
    disk.is_over.set()
    changes.close()

    first_look_s, heard_s = disk.heard
    assert first_look_s == 0
    assert 0 <= heard_s - disk.shows_at_s <= 0.11 + sync_s / 9
    assert len([asked_s for asked_s in disk.asked if asked_s > 99]) < 150
