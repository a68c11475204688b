"""What the doctor sees of a PostgreSQL server."""

import contextlib
from typing import Any

import psycopg
import pytest

from action_retrier.drivers import open_database
from action_retrier.drivers.postgres import diagnosis
from action_retrier.testing import ManualClock

from ..stores import Store
from ..support.postgres_server import free_port


def checks(store: Store) -> dict[str, tuple[str, str]]:
    return {what: (verdict, told) for what, verdict, told in store.database.diagnose()}


def test_a_sound_server_is_told_by_version_and_schema(store: Store) -> None:
    found = checks(store)

    assert found["server"][0] == found["schema"][0] == "ok"
    assert "PostgreSQL" in found["server"][1]
    assert store.system.schema in found["schema"][1]


@pytest.mark.parametrize(
    ("facts", "what", "verdict", "words"),
    [
        ({"is_standby": True}, "primary", "error", "name the primary"),
        ({"flushes": False}, "durability", "warning", "fsync is off"),
        ({"flushes": True, "waits_for_flush": False}, "durability", "warning", "synchronous_commit is off"),
        ({"flushes": True, "waits_for_flush": True}, "durability", "ok", "on disk"),
        ({"vacuums": False}, "vacuum", "warning", "autovacuum is off"),
        ({"oldest_s": 301}, "transactions", "warning", "open for 301 s"),
        ({"sessions": 91, "most_sessions": 100}, "connections", "warning", "91 of 100"),
    ],
)
def test_what_is_wrong_is_told_with_the_remedy(
    store: Store, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], what: str, verdict: str, words: str
) -> None:
    """Each is a line of its own, found by what the server says of itself."""
    columns = ", ".join(f"{value!r} AS {name}" for name, value in facts.items())
    rest = {"is_standby", "flushes", "waits_for_flush", "vacuums", "most_sessions", "sessions", "oldest_s"} - set(facts)
    sound = f"SELECT {columns}, {', '.join(f'f.{name}' for name in sorted(rest))} FROM ({diagnosis._FACTS}) AS f"  # noqa: S608
    monkeypatch.setattr(diagnosis, "_FACTS", sound)

    told = checks(store)[what]

    assert told[0] == verdict
    assert words in told[1]


def test_a_transaction_that_has_just_begun_is_no_reason_to_worry(store: Store) -> None:
    with store.system.connect() as connection:
        connection.execute("SELECT 1")

        assert "transactions" not in checks(store)


def test_a_server_that_is_not_there_is_told_by_its_address(store: Store) -> None:
    port = free_port()
    database = open_database(f"postgresql://127.0.0.1:{port}/shop", clock=ManualClock(), auto_migrate=True)

    ((what, verdict, told),) = database.diagnose()

    assert (what, verdict) == ("server", "error")
    assert f"127.0.0.1:{port}" in told


def test_a_schema_that_is_missing_is_an_error_that_names_the_command(store: Store) -> None:
    url = store.system.url.replace(store.system.schema, f"{store.system.schema}_none")
    with contextlib.closing(open_database(url, clock=ManualClock(), auto_migrate=True)) as database:
        found = {what: (verdict, told) for what, verdict, told in database.diagnose()}

    assert found["schema"][0] == "error"
    assert "action-retrier migrate" in found["schema"][1]
    with psycopg.connect(store.system.url.partition("?")[0]) as connection:
        assert connection.execute("SELECT to_regnamespace(%s)", (f"{store.system.schema}_none",)).fetchone() == (None,)


@pytest.mark.parametrize(
    ("ahead", "verdict", "words"), [(1, "error", "is old: `action-retrier migrate`"), (-1, "warning", "is newer")]
)
def test_the_version_of_the_schema_is_judged(
    store: Store, monkeypatch: pytest.MonkeyPatch, ahead: int, verdict: str, words: str
) -> None:
    newest = diagnosis.newest_version()
    monkeypatch.setattr(diagnosis, "newest_version", lambda: newest + ahead)

    found = checks(store)["schema"]

    assert found[0] == verdict
    assert words in found[1]


def test_a_server_that_is_too_old_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_OLDEST", 990_000)

    verdict, told = checks(store)["version"]

    assert verdict == "error"
    assert "13 or later" in told


def test_a_pooler_is_told_of(store: Store) -> None:
    """Found, or named in the URL: it costs time, and no promise."""
    with contextlib.closing(
        open_database(f"{store.system.url}&direct=false", clock=ManualClock(), auto_migrate=True)
    ) as database:
        assert [verdict for what, verdict, _ in database.diagnose() if what == "pooler"] == ["ok"]
    assert "pooler" not in checks(store)
