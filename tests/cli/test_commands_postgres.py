"""The command line on PostgreSQL: the same commands, given its URL."""

import json
import re

import psycopg
import pytest

from action_retrier import App, SyncActionRetrier
from action_retrier.drivers.postgres import schema


@pytest.fixture
def given(system):
    """What every command is given."""
    return ("--database", system.url)


def test_migrate_creates_the_schema_and_may_be_repeated(run, given, system):
    version = schema.newest_version()
    for _ in range(2):
        said = run("migrate", *given)
        assert (said.code, said.err) == (0, "")
        assert re.fullmatch(rf"postgresql://[^@]+: schema version {version} is in place\n", said.out)


def test_the_sql_makes_what_migrate_makes(run, system):
    """It is printed, nothing is touched, and an administrator runs it."""
    other = f"{system.schema}_other"
    url = system.url.replace(f"schema={system.schema}", f"schema={other}")
    text = run("migrate", "--sql", "--database", url).out
    assert f"CREATE TABLE {other}.runs" in text
    with psycopg.connect(system.user_url, autocommit=True) as connection:
        try:
            assert connection.execute("SELECT to_regnamespace(%s)", [other]).fetchone() == (None,)
            connection.execute(text.encode())
            with App(url, auto_migrate=False) as app:
                assert SyncActionRetrier(app).list(app).runs == []
        finally:
            connection.execute(f"DROP SCHEMA IF EXISTS {other} CASCADE")


@pytest.fixture
def shop(system):
    """An App with some runs, as a service would have it."""
    with App(system.url) as app:

        @app.action(name="double")
        def double(x: int) -> int:
            return 2 * x

        @app.action(name="fail", max_failures=0)
        def fail() -> None:
            raise ConnectionError("refused")

        yield app


def work(app):
    with app.worker() as worker:
        worker.until_idle()


def test_runs_are_listed_shown_canceled_retried_and_cleaned_up(run, given, shop):
    retrier = SyncActionRetrier(shop)
    doubled, failed = retrier.run(shop, "double", {"x": 4}), retrier.run(shop, "fail")
    work(shop)
    later = retrier.run_after(shop, 3_600_000, "double", {"x": 5})

    listed = run("list", *given, "--json").json
    assert [(one["id"], one["state"]) for one in listed["runs"]] == [
        (later, "pending"),
        (failed, "failed"),
        (doubled, "succeeded"),
    ]
    assert run("status", doubled, *given, "--json").json == {
        "type": "completed",
        "result": {"type": "success", "returnValue": 8},
    }
    shown = run("show", failed, *given)
    assert shown.code == 0
    assert "ConnectionError: refused" in shown.out
    assert run("cancel", later, *given).code == 0
    assert run("cancel", doubled, *given).code == 1
    assert run("retry", failed, *given).code == 0
    assert run("cleanup", doubled, *given).code == 0
    assert run("show", doubled, *given).code == 1
    assert {one.state for one in retrier.list(shop).runs} == {"canceled", "pending"}


def test_the_doctor_tells_which_server_and_which_schema(run, given, shop, system):
    found = run("doctor", *given, "--json").json
    checks = {one["check"]: (one["verdict"], one["found"]) for one in found["checks"]}

    assert checks["server"][0] == "ok"
    assert re.search(r"PostgreSQL 1[0-9]", checks["server"][1])
    assert checks["schema"] == ("ok", f"version {schema.newest_version()} in {system.schema}")


def test_the_doctor_finds_a_missing_schema_and_makes_none(run, system):
    url = system.url.replace(f"schema={system.schema}", f"schema={system.schema}_none")
    said = run("doctor", "--database", url, "--json")

    assert said.code == 1
    assert any(one["check"] == "schema" and one["verdict"] == "error" for one in said.json["checks"])
    with psycopg.connect(system.user_url) as connection:
        assert connection.execute("SELECT to_regnamespace(%s)", [f"{system.schema}_none"]).fetchone() == (None,)


def test_a_server_that_cannot_be_reached_is_an_error_that_tells_no_password(run):
    said = run("doctor", "--database", "postgresql://me:hunter2@127.0.0.1:1/x")

    assert said.code == 1
    assert "127.0.0.1:1/x" in said.out + said.err
    assert "hunter2" not in said.out + said.err


def test_a_worker_process_executes_what_is_started(start, write, system, shop):
    """A real process; what it prints names the database and not the password."""
    write(
        "there.py",
        f"from action_retrier import App\napp = App({json.dumps(system.url)})\n"
        "@app.action(name='double')\ndef double(x: int) -> int:\n    return 2 * x\n",
    )
    retrier = SyncActionRetrier(shop)
    run_id = retrier.run(shop, "double", {"x": 21})
    start("worker", "there:app")

    assert retrier.wait(shop, run_id, timeout_ms=30_000).return_value == 42
