"""Opening a database file: created, upgraded and refused, by however many at once."""

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from action_retrier._ops.control import Filter, cancel_runs
from action_retrier._ops.workers import list_workers
from action_retrier.drivers import Database, open_database
from action_retrier.drivers.sqlite import database as database_module
from action_retrier.drivers.sqlite import schema, writer
from action_retrier.errors import DatabaseUnavailable, SchemaMismatch
from action_retrier.testing import ManualClock

from ..stores import NAMESPACE, in_thread


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@contextlib.contextmanager
def opened(path: Path, *, auto_migrate: bool = True, query: str = "") -> Iterator[Database]:
    database = open_database(f"sqlite:///{path}{query}", clock=ManualClock(), auto_migrate=auto_migrate)
    try:
        database.open()
        yield database
    finally:
        database.close()


def meta(path: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT key, value FROM action_retrier_meta"))


def set_version(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE action_retrier_meta SET value = ? WHERE key = 'version'", (str(version),))
        connection.commit()


def shape(path: Path) -> set[tuple[Any, ...]]:
    """Return the schema as SQLite tells it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))


def test_nothing_is_touched_before_the_first_use(path: Path) -> None:
    database = open_database(f"sqlite:///{path}", clock=ManualClock(), auto_migrate=True)
    database.close()

    assert not path.exists()


def test_a_new_file_is_the_owners_alone(path: Path) -> None:
    """Nobody else may read what runs carry."""
    before = os.umask(0)
    try:
        with opened(path):
            modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir() if file.is_file()}
    finally:
        os.umask(before)

    assert modes == {0o600}


def test_the_mode_of_a_file_that_is_there_is_its_owners_business(path: Path) -> None:
    path.touch(0o644)
    path.chmod(0o644)
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_gate_that_cannot_be_opened_is_told_with_the_remedy(path: Path) -> None:
    """Another user's file, for one; root may open that, so this is a directory."""
    path.with_name(f"{path.name}-gate").mkdir()

    with (
        pytest.raises(DatabaseUnavailable, match=r"app\.db-gate cannot be opened .*check its owner and mode"),
        opened(path),
    ):
        pass


@pytest.mark.parametrize(("query", "level"), [("", 2), ("?synchronous=normal", 1), ("?synchronous=extra", 3)])
def test_a_commit_is_on_disk_unless_the_url_says_otherwise(path: Path, query: str, level: int) -> None:
    """I1: WAL, synchronous=FULL: a committed run survives the loss of power. Never a mapped file."""
    with opened(path, query=query) as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        connection = database._writer._connection  # type: ignore[attr-defined]
        asked = {
            name: connection.execute(f"PRAGMA {name}").fetchone()
            for name in ("synchronous", "journal_mode", "mmap_size")
        }
    assert asked["synchronous"] == (level,)
    assert asked["journal_mode"] == ("wal",)
    assert asked["mmap_size"] in {None, (0,)}


def test_a_log_that_stays_large_is_not_copied_back_at_each_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite keeps the file as large as it was once, and a reader may keep its content from being used up."""
    monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", 0)
    texts: list[str] = []
    with opened(path) as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        database._writer._connection.set_trace_callback(texts.append)  # type: ignore[attr-defined]
        monkeypatch.setattr(database._writer, "_checkpoint_at_s", 0.0)  # type: ignore[attr-defined]
        monkeypatch.setattr(writer, "_CHECKPOINT_PAUSE_S", 3600)
        for _ in range(10):
            database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
    assert sum("wal_checkpoint" in text for text in texts) == 1


def test_opening_again_keeps_the_installation(path: Path) -> None:
    """Handles are told apart by an id that the database keeps for life."""
    with opened(path) as database:
        first = meta(path)
        assert database.installation == first["installation"]
    with opened(path):
        assert meta(path) == first
    assert first["version"] == str(schema.newest_version())


def test_ten_that_open_at_once_make_one_schema(path: Path) -> None:
    """Under a lock, so that ten processes starting at once is fine."""
    barrier = threading.Barrier(10)

    def open_one() -> str:
        barrier.wait()
        with opened(path) as database:
            database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
            return database.installation

    futures = [in_thread(open_one) for _ in range(10)]

    assert len({future.result(30) for future in futures}) == 1


def test_without_auto_migrate_a_missing_schema_is_refused(path: Path) -> None:
    """The error names the command to run, and nothing is made."""
    with pytest.raises(SchemaMismatch, match=r"missing.*action-retrier migrate"), opened(path, auto_migrate=False):
        pass

    assert shape(path) == set()


def test_without_auto_migrate_a_schema_that_is_there_will_do(path: Path) -> None:
    with opened(path):
        pass
    with opened(path, auto_migrate=False) as database:
        assert database.read_sync(lambda: list_workers(NAMESPACE)) == []


def test_migrating_by_hand_does_what_opening_refuses(path: Path) -> None:
    database = open_database(f"sqlite:///{path}", clock=ManualClock(), auto_migrate=False)
    assert database.migrate() == schema.newest_version()
    database.close()
    assert meta(path)["version"] == str(schema.newest_version())


@pytest.mark.parametrize(("ahead", "works"), [(0, True), (1, True), (2, False), (9, False)])
def test_a_newer_schema_works_by_one_version(path: Path, ahead: int, *, works: bool) -> None:
    """Migrations only expand: yesterday's workers run on today's schema, and none older."""
    with opened(path):
        pass
    set_version(path, schema.newest_version() + ahead)

    if works:
        with opened(path, auto_migrate=False) as database:
            assert database.read_sync(lambda: list_workers(NAMESPACE)) == []
    else:
        with pytest.raises(SchemaMismatch, match="upgrade action-retrier"), opened(path):
            pass
    assert meta(path)["version"] == str(schema.newest_version() + ahead)


def test_the_script_makes_the_same_schema(path: Path, tmp_path: Path) -> None:
    """What people run by hand is what `migrate` does."""
    by_hand = tmp_path / "by_hand.db"
    with opened(path) as database:
        with contextlib.closing(sqlite3.connect(by_hand)) as connection:
            connection.executescript(database.schema_sql())
        assert shape(by_hand) == shape(path)
        assert meta(by_hand)["version"] == meta(path)["version"]
        assert meta(by_hand)["installation"] != meta(path)["installation"]
    with opened(by_hand, auto_migrate=False):
        pass


@pytest.mark.parametrize("version", range(1, schema.newest_version() + 1))
def test_upgrading_from_each_version_is_a_fresh_install(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    all_of_them = schema.migrations()
    with opened(tmp_path / "fresh.db"):
        pass
    monkeypatch.setattr(schema, "migrations", lambda: all_of_them[:version])
    with opened(path):
        assert meta(path)["version"] == str(version)
    monkeypatch.setattr(schema, "migrations", lambda: all_of_them)
    with opened(path):
        assert shape(path) == shape(tmp_path / "fresh.db")


def test_a_migration_that_fails_leaves_the_schema_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is written in the migration's own transaction."""
    with opened(path):
        before = shape(path), meta(path)
    texts = [*schema.migrations(), "CREATE TABLE action_retrier_more (x);\nCREATE TABLE action_retrier_runs (x);\n"]
    monkeypatch.setattr(schema, "migrations", lambda: texts)

    with pytest.raises(sqlite3.OperationalError), opened(path):
        pass

    assert (shape(path), meta(path)) == before


def test_tables_of_the_users_are_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (id)")
    with opened(path):
        names = {name for _, name, _, _ in shape(path)}
    ours = {name for name in names if name.startswith(("action_retrier_", "sqlite_autoindex_action_retrier_"))}
    assert names - ours == {"runs"}


def test_a_missing_directory_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"directory .* does not exist"), opened(tmp_path / "no" / "app.db"):
        pass


def test_a_file_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    """Root may write anywhere, so this is a name that no file can have."""
    with (
        pytest.raises(DatabaseUnavailable, match=r"cannot be created \(File name too long\): check the directory"),
        opened(tmp_path / ("long" * 100)),
    ):
        pass


def test_an_old_sqlite_is_said_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RETURNING, which claims need, came with 3.35."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))

    with pytest.raises(DatabaseUnavailable, match=r"this Python has SQLite .*: use one with SQLite 3\."), opened(path):
        pass

    assert not path.exists()


def test_a_file_without_a_log_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Some file systems have no shared memory, and SQLite stays with another journal; so it does in memory."""
    monkeypatch.setattr(database_module, "connect", lambda *_, **__: sqlite3.connect(":memory:"))

    with pytest.raises(DatabaseUnavailable, match="could not switch to WAL mode .*'memory'.*local file"), opened(path):
        pass


def test_a_log_that_somebody_removed_keeps_nobody_from_writing(path: Path) -> None:
    """How large it has grown cannot be told then."""
    with opened(path) as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        path.with_name(f"{path.name}-wal").unlink()
        assert database.write_sync(lambda: cancel_runs(NAMESPACE, Filter())) == 0


def test_what_the_database_says_of_itself_may_be_missing(path: Path) -> None:
    with opened(path), contextlib.closing(sqlite3.connect(path)) as connection:
        assert schema.read_meta(connection, "version") == "1"
        assert schema.read_meta(connection, "colour") is None


def test_a_file_that_is_no_database_is_said_so_and_left_alone(path: Path) -> None:
    path.write_bytes(b"my thesis" * 1000)

    with pytest.raises(DatabaseUnavailable, match="no SQLite database"), opened(path):
        pass

    assert path.read_bytes() == b"my thesis" * 1000


def test_a_damaged_file_is_said_so_and_not_repaired(path: Path) -> None:
    with opened(path) as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        pages = dict(connection.execute("SELECT name, rootpage FROM sqlite_master"))
    damaged = bytearray(path.read_bytes())
    begin = (pages["action_retrier_workers"] - 1) * page_size
    damaged[begin : begin + page_size] = os.urandom(page_size)
    path.write_bytes(damaged)

    with opened(path) as database, pytest.raises(DatabaseUnavailable, match="damaged"):
        database.read_sync(lambda: list_workers(NAMESPACE))

    assert path.read_bytes() == damaged


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_is_removed_or_replaced_while_it_is_open_is_written_no_more(
    path: Path, *, is_replaced: bool
) -> None:
    """SQLite would go on with the file that has no name, and tell that all is well: nobody would find the runs."""
    with opened(path) as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        database.read_sync(lambda: list_workers(NAMESPACE))
        path.rename(path.with_name("moved.db"))
        if is_replaced:
            path.touch()
        what = "replaced by another file" if is_replaced else "removed"
        with pytest.raises(DatabaseUnavailable, match=what):
            database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        with pytest.raises(DatabaseUnavailable, match=what):
            database.read_sync(lambda: list_workers(NAMESPACE))

        assert path.exists() == is_replaced, "none is made in its place"
        path.with_name("moved.db").rename(path)
        assert database.read_sync(lambda: list_workers(NAMESPACE)) == [], "back in its place it is in use again"
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))


def test_a_file_that_cannot_be_looked_at_any_more_is_told_with_the_remedy(tmp_path: Path) -> None:
    """The directory was replaced, a network's file system is stale, the mode was changed: no bare OSError."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with opened(folder / "app.db") as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        folder.rename(tmp_path / "moved")
        folder.touch()
        with pytest.raises(DatabaseUnavailable, match=r"cannot be reached any more .*Not a directory.*check"):
            database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        with pytest.raises(DatabaseUnavailable, match="cannot be reached any more"):
            database.read_sync(lambda: list_workers(NAMESPACE))

        folder.unlink()
        (tmp_path / "moved").rename(folder)
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))


def test_closing_and_opening_again(path: Path) -> None:
    with opened(path) as database:
        database.close()
        database.close()
        assert database.read_sync(lambda: list_workers(NAMESPACE)) == []
        database.open()
        database.open()


def test_a_closed_database_leaves_no_thread_and_no_file_open(path: Path) -> None:
    before = set(threading.enumerate())
    with opened(path) as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        database.read_sync(lambda: list_workers(NAMESPACE))
        subscription = database.changes.subscribe(lambda: None)
        subscription.active = True
    left = {one.name for one in set(threading.enumerate()) - before}
    assert left.isdisjoint({"action-retrier-writer", "action-retrier-watch"})
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        open_files = {os.readlink(one) for one in descriptors.iterdir() if one.is_symlink()}
        assert str(path) not in open_files
        assert f"{path}-wal" not in open_files
