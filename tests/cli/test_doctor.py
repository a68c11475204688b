"""`doctor`: what it finds, how grave it is, and what it says to do."""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from action_retrier import App, SyncActionRetrier
from action_retrier.drivers.sqlite import diagnosis, leases

APP = ("--database", "sqlite:///job.db")


@pytest.fixture
def doctor(run):
    """Run the doctor, and return its exit code and its findings by what was checked."""

    def call(*arguments):
        said = run("doctor", *(arguments or APP), "--json")
        checks = {}
        for one in said.json["checks"]:
            checks.setdefault(one["check"], []).append((one["verdict"], one["found"]))
        return SimpleNamespace(code=said.code, checks=checks, json=said.json, only=lambda what: checks[what][0])

    return call


def test_a_new_database_is_well_and_its_path_is_told(run, shop, folder, monkeypatch):
    monkeypatch.setattr(diagnosis.sqlite3, "sqlite_version_info", (3, 51, 3))

    said = run("doctor", *APP)

    lines = said.out.splitlines()
    assert (said.code, said.err) == (0, "")
    assert lines[0] == f"database: {folder}/job.db (namespace default)"
    assert lines[-1] == "0 errors, 1 warning"
    assert any(line.startswith("warning  workers") and "none is running" in line for line in lines)
    assert {line.split()[0] for line in lines[1:-1]} == {"ok", "warning"}


def test_it_fits_80_columns(run, shop):
    said = run("doctor", *APP, columns=80)

    assert max(map(len, said.out.splitlines())) <= 80


def test_live_workers_are_listed(doctor, run, shop):
    with shop.app.worker(queues=["mail", "default"]) as worker:
        found = doctor()
        text = run("doctor", *APP).out

    assert found.code == 0
    assert found.json["workers"] == [
        {
            "id": worker.id,
            "host": found.json["workers"][0]["host"],
            "pid": found.json["workers"][0]["pid"],
            "since": "2026-01-01T00:00:00+00:00",
            "queues": ["mail", "default"],
        }
    ]
    assert f"pid {found.json['workers'][0]['pid']} on " in text
    assert "since 2026-01-01T00:00:00+00:00, queues mail, default" in text


def test_work_without_any_worker_is_an_error(doctor, shop):
    shop.start("job:double", {"x": 4})

    found = doctor()

    assert found.code == 1
    assert found.only("workers")[0] == "error"
    assert "start one with `action-retrier worker MODULE:APP`" in found.only("workers")[1]


def test_stuck_runs_are_counted_and_their_blocker_is_named(doctor, shop):
    """The shop's runs have been due since the beginning of 2026; its worker does not take what it is not allowed to."""
    for _ in range(3):
        shop.start("job:unknown", {})
    shop.start("job:double", {"x": 4}, on_complete="job:unknown_callback")
    shop.start("job:double", {"x": 4}, queue="mail")
    with shop.app.worker(queues=["default"]) as worker:
        worker.until_idle()
        found = doctor()

    told = found.checks["stuck runs"]
    assert found.code == 1
    assert [verdict for verdict, _ in told] == ["error"] * 3
    assert told[0][1].startswith("1 of job:double, due for up to ")
    assert "no live worker that knows the action knows their callback job:unknown_callback: start" in told[0][1]
    assert told[1][1].startswith("3 of job:unknown, due for up to ")
    assert "no live worker knows the action job:unknown: start one whose App has it (--import)" in told[1][1]
    assert told[2][1].startswith("1 of job:double in queue mail")
    assert "takes queue 'mail'" in told[2][1]
    assert found.only("oldest due run")[0] == "warning"
    assert found.only("oldest due run")[1].startswith("has waited for ")


def test_what_has_not_been_due_for_a_minute_is_not_stuck(doctor):
    with App("sqlite:///job.db") as app:
        SyncActionRetrier(app).run(app, "job:double", {"x": 4})

    found = doctor()

    assert found.only("stuck runs") == ("ok", "none has been due for over a minute")
    assert found.only("oldest due run")[0] == "ok"
    assert "(job:double)" in found.only("oldest due run")[1]
    assert "blocked runs" not in found.checks


def test_what_no_live_worker_would_take_is_told_at_once(doctor, start):
    """A typo in a name, a forgotten --import: nobody has to wait for it to be overdue."""
    with App("sqlite:///job.db") as app:
        SyncActionRetrier(app).run(app, "job:duoble", {"x": 4})
        SyncActionRetrier(app).run(app, "job:double", {"x": 4}, on_complete="job:ntoe")
        SyncActionRetrier(app).run_after(app, 3_600_000, "job:later", {"x": 4})
        worker = start("worker", "job:app")
        worker.hear("is ready")

        found = doctor()

    assert found.checks["blocked runs"] == [
        (
            "warning",
            "runs of job:double wait: no live worker that knows the action knows their callback job:ntoe: "
            "start one whose App has both (--import)",
        ),
        (
            "warning",
            "runs of job:duoble wait: no live worker knows the action job:duoble: start one whose App has it "
            "(--import), or give them up with `action-retrier cancel --action job:duoble`",
        ),
    ]
    assert found.code == 0


def test_a_callback_that_keeps_failing_is_shown_with_its_last_error(doctor, shop):
    run_id = shop.start("job:double", {"x": 4}, on_complete="job:note", context="the ledger is closed")
    with shop.app.worker() as worker:
        worker.until_idle()
        early = doctor()
        for _ in range(12):
            shop.clock.advance(120_000)
            worker.until_idle()
        late = doctor()
    alone = doctor()

    verdict, told = early.only("pending callbacks")
    assert (early.code, verdict) == (0, "warning")
    assert f"1 of job:note, 1 failing, run {run_id} after " in told
    assert "tries: ValueError: the ledger is closed; " in told
    assert "cleanup ID --discard-callback" in told
    assert (late.code, late.only("pending callbacks")[0]) == (1, "error")
    assert alone.only("pending callbacks")[1].startswith("1 of job:note: no live worker knows it: start one whose App")


def test_what_a_killed_worker_left_is_told(doctor, start, shop):
    shop.start("job:until_released", {})
    worker = start("worker", "job:app")
    worker.hear("began")
    worker.signal(signal.SIGKILL)
    worker.wait()

    found = doctor()

    assert found.code == 1
    assert found.json["workers"] == []
    assert found.only("dead workers")[0] == "warning"
    assert f"1 ended without signing off (pid {worker.pid} on " in found.only("dead workers")[1]
    assert found.only("interrupted runs")[0] == "error"
    assert found.only("interrupted runs")[1].startswith("1 runs and 0 callbacks are with workers that are dead")

    with closing(sqlite3.connect("job.db")) as db, db:
        db.execute("DELETE FROM action_retrier_workers")
    found = doctor()

    assert found.only("dead workers") == ("ok", "none")
    assert found.only("interrupted runs")[0] == "error"


def test_a_worker_that_was_stopped_is_not_taken_for_a_live_one(doctor, start, monkeypatch):
    """It holds its lock, and gives no sign: only the others may judge it dead, but people should know."""
    worker = start("worker", "job:app")
    worker.hear("is ready")
    assert doctor().only("worker")[0] == "ok"
    worker.signal(signal.SIGSTOP)
    monkeypatch.setattr(leases, "LEASE_US", 0)

    found = doctor()

    assert found.json["workers"] == []
    assert found.only("silent worker")[0] == "warning"
    assert f"pid {worker.pid} on " in found.only("silent worker")[1]


def test_a_worker_whose_lock_file_was_removed_is_not_taken_for_a_live_one(doctor, start):
    worker = start("worker", "job:app")
    worker.hear("is ready")
    worker.signal(signal.SIGSTOP)  # it would notice, and take a new lease
    for lock in Path("job.db-workers").iterdir():
        lock.unlink()

    found = doctor()

    assert found.json["workers"] == []
    assert "lock file was removed" in found.only("silent worker")[1]


def test_a_database_without_tables_is_an_error_and_stays_so(doctor, run, folder):
    with closing(sqlite3.connect(folder / "theirs.db")) as db:
        db.execute("CREATE TABLE orders (id INTEGER)")

    found = doctor("--database", "sqlite:///theirs.db")

    assert found.code == 1
    assert found.only("schema") == ("error", "missing: run `action-retrier migrate`, or start a worker")
    assert found.only("journal mode")[0] == "warning"
    assert "workers" not in found.checks
    with closing(sqlite3.connect(folder / "theirs.db")) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("orders",)]


@pytest.mark.parametrize(
    ("version", "verdict", "told"),
    [
        (0, "error", "missing"),
        (1, "ok", "version 1"),
        (2, "warning", "version 2, one more than this code knows"),
        (3, "error", "version 3, and this code knows 1: upgrade action-retrier here"),
    ],
)
def test_the_version_of_the_schema_is_judged(doctor, shop, version, verdict, told):
    with closing(sqlite3.connect("job.db")) as db, db:
        db.execute("UPDATE action_retrier_meta SET value = ? WHERE key = 'version'", (str(version),))

    found = doctor()

    assert found.only("schema")[0] == verdict
    assert told in found.only("schema")[1]


def test_a_damaged_file_is_an_error(doctor, shop, folder):
    for x in range(500):
        shop.start("job:double", {"x": x})
    shop.app.__exit__(None, None, None)
    with closing(sqlite3.connect(folder / "job.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    damaged = bytearray((folder / "job.db").read_bytes())
    for page in range(len(damaged) // 4096 // 2, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    (folder / "job.db").write_bytes(damaged)

    found = doctor()

    assert found.code == 1
    assert found.only("integrity")[0] == "error"
    assert "restore a backup" in found.only("integrity")[1]


def test_a_file_that_is_no_database_is_an_error(doctor, folder):
    (folder / "text.db").write_text("not a database " * 500)

    found = doctor("--database", "sqlite:///text.db")

    assert found.code == 1
    assert found.only("database file")[0] == "error"
    assert "the file is no SQLite database" in found.only("database file")[1]


def test_a_file_that_others_may_read_is_a_warning(doctor, shop, folder):
    (folder / "job.db").chmod(0o644)

    verdict, told = doctor().only("file mode")

    assert verdict == "warning"
    assert told == f"{folder}/job.db has mode 0644, so others can get at its data: chmod 600 {folder}/job.db"


def test_weaker_durability_is_a_warning(doctor, shop):
    assert doctor("--database", "sqlite:///job.db?synchronous=normal").only("synchronous")[0] == "warning"
    assert doctor().only("synchronous") == ("ok", "full")


def test_a_large_log_is_a_warning(doctor, shop, monkeypatch):
    monkeypatch.setattr(diagnosis, "_LARGE_WAL_BYTES", 1)
    shop.start("job:double", {"x": 4})

    assert doctor().only("WAL size")[0] == "warning"


def test_a_check_that_takes_too_long_is_broken_off(shop, folder, monkeypatch):
    monkeypatch.setattr(diagnosis, "_CHECK_LIMIT_S", -1.0)
    monkeypatch.setattr(diagnosis, "_STEPS", 1)

    (found,) = [told for what, _, told in diagnosis.diagnose(folder / "job.db") if what == "integrity"]

    assert found.startswith("no damage found in ")
    assert "PRAGMA quick_check" in found


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ((3, 34, 1), "error"),
        ((3, 40, 1), "warning"),
        ((3, 44, 5), "warning"),
        ((3, 44, 6), "ok"),
        ((3, 45, 0), "warning"),
        ((3, 50, 6), "warning"),
        ((3, 50, 7), "ok"),
        ((3, 51, 0), "warning"),
        ((3, 51, 2), "warning"),
        ((3, 51, 3), "ok"),
        ((4, 0, 0), "ok"),
    ],
)
def test_which_versions_of_sqlite_can_damage_a_log(version, verdict):
    assert diagnosis._check_sqlite_version(version)[1] == verdict


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/shop.db", "nfs4"),
        ("/data/local/shop.db", "xfs"),
        ("/database/shop.db", "ext4"),
        ("/with space/shop.db", "fuse.sshfs"),
        ("/twice/shop.db", "tmpfs"),
    ],
)
def test_the_file_system_is_that_of_the_deepest_mount_point(path, kind):
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\n/dev/sdb1 /data/local xfs rw 0 0\n"
        "me@there: /with\\040space fuse.sshfs rw 0 0\n/dev/sdc1 /twice ext4 rw 0 0\nnone /twice tmpfs rw 0 0\n"
    )

    assert diagnosis._file_system_of(Path(path), mounts) == kind


def test_a_network_file_system_is_a_warning(doctor, shop, folder, monkeypatch):
    (folder / "mounts").write_text("server:/x / nfs4 rw 0 0\n")
    monkeypatch.setattr(diagnosis, "_MOUNTS", folder / "mounts")

    verdict, told = doctor().only("file system")

    assert verdict == "warning"
    assert told.startswith("nfs4: ")


def told_by(path, what):
    """Return what the checks of a file say of one thing."""
    return next((verdict, told) for name, verdict, told in diagnosis.diagnose(path) if name == what)


def test_a_file_that_is_not_there_is_an_error(folder):
    assert told_by(folder / "no.db", "database file") == (
        "error",
        f"{folder}/no.db does not exist: `action-retrier migrate` creates it",
    )


def test_a_file_that_this_user_may_not_write_is_a_warning(shop, folder, monkeypatch):
    """Root may write anywhere, so the answer of the system is made up."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder)

    verdict, told = told_by(folder / "job.db", "database file")

    assert (verdict, told) == ("warning", f"this user may not write {folder}; workers must be able to")


def test_a_schema_of_an_older_version_is_an_error(shop, folder, monkeypatch):
    monkeypatch.setattr(diagnosis, "newest_version", lambda: 2)

    verdict, told = told_by(folder / "job.db", "schema")

    assert (verdict, told) == ("error", "version 1, and this code needs 2: run `action-retrier migrate`")


def test_a_check_that_fails_itself_is_an_error(shop, folder):
    """Whatever SQLite says of it, it does not say that all is well."""
    with closing(sqlite3.connect(folder / "job.db")) as db:
        db.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_PRAGMA else 0)

        assert diagnosis._check_integrity(db, folder / "job.db") == ("integrity", "error", "not authorized")


def test_where_the_mounts_cannot_be_read_the_file_system_is_not_known(shop, folder, monkeypatch):
    """There is no such file on macOS."""
    monkeypatch.setattr(diagnosis, "_MOUNTS", folder / "no mounts")

    assert told_by(folder / "job.db", "file system") == ("ok", "not known here; it must be a local one")
