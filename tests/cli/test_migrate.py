"""`migrate`: with a database, and as SQL that touches nothing."""

import sqlite3
from contextlib import closing

from action_retrier import App, SyncActionRetrier


def test_migrate_creates_the_database_and_may_be_repeated(run, folder):
    for _ in range(2):
        said = run("migrate", "--database", "sqlite:///new.db")
        assert (said.code, said.out) == (0, f"{folder}/new.db: schema version 1 is in place\n")
    assert run("migrate", "--database", "sqlite:///new.db", "--json").json == {
        "database": str(folder / "new.db"),
        "version": 1,
    }
    assert run("list", "--database", "sqlite:///new.db").code == 0


def test_migrate_serves_an_app_that_does_not_do_it_itself(run, write):
    write("careful.py", "from action_retrier import App\napp = App('sqlite:///careful.db', auto_migrate=False)")

    assert run("list", "--app", "careful:app").code == 2
    assert run("migrate", "--app", "careful:app").code == 0
    assert run("list", "--app", "careful:app").code == 0


def test_the_sql_is_printed_and_nothing_is_touched(run, folder):
    said = run("migrate", "--sql", "--database", "sqlite:///new.db")

    assert said.code == 0
    assert "CREATE TABLE action_retrier_runs" in said.out
    assert [path.name for path in folder.iterdir()] == ["job.py"]
    assert run("migrate", "--sql", "--database", "sqlite:///new.db", "--json").json == {
        "sql": said.out.rstrip("\n") + "\n"
    }


def test_the_sql_makes_what_migrate_makes(run, folder):
    with closing(sqlite3.connect(folder / "by_hand.db")) as db:
        db.executescript(run("migrate", "--sql").out)
    run("migrate", "--database", "sqlite:///by_us.db")

    def schema(name):
        with closing(sqlite3.connect(folder / name)) as db:
            version = db.execute("SELECT value FROM action_retrier_meta WHERE key = 'version'").fetchone()
            return db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall(), version

    assert schema("by_hand.db") == schema("by_us.db")
    with App("sqlite:///by_hand.db", auto_migrate=False) as app:
        run_id = SyncActionRetrier(app).run(app, "billing:charge", {})
    assert run("status", run_id, "--database", "sqlite:///by_hand.db").code == 0
