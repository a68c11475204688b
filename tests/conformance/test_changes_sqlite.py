"""Wake-ups on SQLite: whoever commits to the file, on whatever table, rings."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from ..stores import Bell, Store


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
