"""Opening a PostgreSQL database: its schema is created, upgraded and refused, by however many at once."""

import contextlib
import secrets
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.rows import dict_row

from action_retrier._ops.control import Filter, cancel_runs
from action_retrier._ops.starts import start_runs
from action_retrier._ops.workers import list_workers
from action_retrier.drivers import Database, open_database
from action_retrier.drivers.postgres import schema
from action_retrier.errors import DatabaseUnavailable, SchemaMismatch
from action_retrier.testing import ManualClock

from ..stores import LIMIT_S, NAMESPACE, in_thread, postgres_url, until, with_query


@pytest.fixture
def look() -> Iterator[psycopg.Connection[Any]]:
    """A session of an administrator's."""
    with contextlib.closing(psycopg.connect(postgres_url(), autocommit=True, row_factory=dict_row)) as connection:
        yield connection


@pytest.fixture
def make_name(look: psycopg.Connection[Any]) -> Iterator[Callable[[], str]]:
    """Make names of schemas that are not there yet, and are not there afterwards."""
    names = []

    def make() -> str:
        names.append(f"o{secrets.token_hex(8)}")
        return names[-1]

    yield make
    for name in names:
        look.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture
def name(make_name: Callable[[], str]) -> str:
    return make_name()


@contextlib.contextmanager
def opened(name: str, *, auto_migrate: bool = True, url: str | None = None, query: str = "") -> Iterator[Database]:
    full = with_query(url or postgres_url(), f"schema={name}{query}")
    database = open_database(full, clock=ManualClock(), auto_migrate=auto_migrate)
    try:
        database.open()
        yield database
    finally:
        database.close()


def meta(look: psycopg.Connection[Any], name: str) -> dict[str, str]:
    return {row["key"]: row["value"] for row in look.execute(f"SELECT key, value FROM {name}.meta").fetchall()}  # noqa: S608


def set_version(look: psycopg.Connection[Any], name: str, version: int) -> None:
    look.execute(f"UPDATE {name}.meta SET value = %s WHERE key = 'version'", [str(version)])  # noqa: S608


def shape(look: psycopg.Connection[Any], name: str) -> list[Any]:
    """Return a schema as the server tells it, whatever its name is."""
    columns = look.execute(
        "SELECT table_name, ordinal_position, column_name, data_type, collation_name, is_nullable, column_default"
        "  FROM information_schema.columns WHERE table_schema = %s ORDER BY 1, 2",
        [name],
    ).fetchall()
    indexes = look.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = %s ORDER BY 1", [name]).fetchall()
    checks = look.execute(
        "SELECT conrelid::regclass::text AS on, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = to_regnamespace(%s) ORDER BY 1, 2",
        [name],
    ).fetchall()
    others = look.execute(
        "SELECT relname, relkind, reloptions, pg_get_viewdef(oid) AS view FROM pg_class"
        " WHERE relnamespace = to_regnamespace(%s) ORDER BY 1",
        [name],
    ).fetchall()
    return [repr(row).replace(name, "SCHEMA") for row in (*columns, *indexes, *checks, *others)]


def test_nothing_is_touched_before_the_first_use(look: psycopg.Connection[Any], name: str) -> None:
    database = open_database(with_query(postgres_url(), f"schema={name}"), clock=ManualClock(), auto_migrate=True)
    database.close()

    assert shape(look, name) == []


def test_opening_again_keeps_the_installation(look: psycopg.Connection[Any], name: str) -> None:
    """Handles are told apart by an id that the database keeps for life."""
    with opened(name) as database:
        first = meta(look, name)
        assert database.installation == first["installation"]
    with opened(name):
        assert meta(look, name) == first
    assert first["version"] == str(schema.newest_version())


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_ten_that_open_at_once_make_one_schema(name: str, isolation: str) -> None:
    """Under a lock, so that ten processes starting at once is fine, whatever the role's default isolation is."""
    barrier = threading.Barrier(10)
    setting = quote(f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}")

    def open_one() -> str:
        barrier.wait()
        with opened(name, query=f"&options={setting}") as database:
            database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
            return database.installation

    futures = [in_thread(open_one) for _ in range(10)]

    assert len({future.result(LIMIT_S) for future in futures}) == 1


def test_processes_that_open_at_once_make_one_schema(name: str) -> None:
    """The same, each with nothing of the others'."""
    program = f"""
        from action_retrier.drivers import open_database
        from action_retrier._clock import SystemClock
        database = open_database({with_query(postgres_url(), f"schema={name}")!r}, clock=SystemClock(), auto_migrate=True)
        print("ready", flush=True)
        input()
        database.open()
        print(database.installation, flush=True)
        database.close()
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=LIMIT_S)[0] for process in processes]

    assert len(set(told)) == 1
    assert told[0].strip()


def test_without_auto_migrate_a_missing_schema_is_refused(look: psycopg.Connection[Any], name: str) -> None:
    """The error names the command to run, and nothing is made."""
    with (
        pytest.raises(SchemaMismatch, match=r"missing.*action-retrier migrate --database postgresql://"),
        opened(name, auto_migrate=False),
    ):
        pass

    assert shape(look, name) == []


def test_without_auto_migrate_an_older_schema_is_refused(look: psycopg.Connection[Any], name: str) -> None:
    with opened(name):
        set_version(look, name, schema.newest_version() - 1)

    with pytest.raises(SchemaMismatch, match="action-retrier migrate"), opened(name, auto_migrate=False):
        pass


def test_without_auto_migrate_a_current_schema_is_served(name: str) -> None:
    with opened(name), opened(name, auto_migrate=False) as careful:
        assert careful.read_sync(lambda: list_workers(NAMESPACE)) == []


def test_migrate_is_asked_for_even_where_opening_only_checks(look: psycopg.Connection[Any], name: str) -> None:
    database = open_database(with_query(postgres_url(), f"schema={name}"), clock=ManualClock(), auto_migrate=False)
    with contextlib.closing(database):
        assert database.migrate() == schema.newest_version()
        assert database.migrate() == schema.newest_version()
    assert meta(look, name)["version"] == str(schema.newest_version())


def test_a_schema_that_is_one_version_newer_is_served(look: psycopg.Connection[Any], name: str) -> None:
    """Workers of the previous schema version keep working after an upgrade, and change nothing about it."""
    with opened(name):
        set_version(look, name, schema.newest_version() + 1)
    with opened(name) as database:
        assert database.read_sync(lambda: list_workers(NAMESPACE)) == []
    assert meta(look, name)["version"] == str(schema.newest_version() + 1)


def test_a_schema_that_is_two_versions_newer_is_refused(look: psycopg.Connection[Any], name: str) -> None:
    with opened(name):
        set_version(look, name, schema.newest_version() + 2)

    with pytest.raises(SchemaMismatch, match="upgrade action-retrier here"), opened(name):
        pass


def test_the_script_creates_what_migrate_creates(
    look: psycopg.Connection[Any], name: str, make_name: Callable[[], str]
) -> None:
    """For people whose DBAs run the DDL: it is one transaction, as psql would run it, and then all is there."""
    by_hand = make_name()
    script = open_database(with_query(postgres_url(), f"schema={by_hand}"), clock=ManualClock(), auto_migrate=True)
    text = script.schema_sql()
    assert shape(look, by_hand) == []
    look.execute(text.encode())
    with opened(name):
        assert shape(look, by_hand) == shape(look, name)
        assert meta(look, by_hand)["version"] == meta(look, name)["version"]
        assert meta(look, by_hand)["installation"] != meta(look, name)["installation"]
    with opened(by_hand, auto_migrate=False):
        pass


def test_a_script_that_fails_leaves_nothing(look: psycopg.Connection[Any], name: str) -> None:
    text = open_database(
        with_query(postgres_url(), f"schema={name}"), clock=ManualClock(), auto_migrate=True
    ).schema_sql()

    with pytest.raises(psycopg.Error):
        look.execute(text.replace("COMMIT;", "SELECT 1 / 0; COMMIT;").encode())
    look.execute("ROLLBACK")

    assert shape(look, name) == []


@pytest.mark.parametrize("version", range(1, schema.newest_version() + 1))
def test_upgrading_from_each_version_is_a_fresh_install(
    look: psycopg.Connection[Any],
    name: str,
    make_name: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    version: int,
) -> None:
    fresh, all_of_them = make_name(), schema.migrations()
    with opened(fresh):
        pass
    monkeypatch.setattr(schema, "migrations", lambda: all_of_them[:version])
    with opened(name):
        assert meta(look, name)["version"] == str(version)
    monkeypatch.setattr(schema, "migrations", lambda: all_of_them)
    with opened(name):
        assert shape(look, name) == shape(look, fresh)


def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    look: psycopg.Connection[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is written in the migration's own transaction."""
    with opened(name):
        before = shape(look, name), meta(look, name)
    texts = [*schema.migrations(), "CREATE TABLE {schema}.more (x int); CREATE TABLE {schema}.runs (x int)"]
    monkeypatch.setattr(schema, "migrations", lambda: texts)

    with pytest.raises(psycopg.errors.DuplicateTable), opened(name):
        pass

    assert (shape(look, name), meta(look, name)) == before


def test_a_session_that_is_lost_in_a_migration_is_said_so(
    look: psycopg.Connection[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it, and the next one who opens does it."""
    texts = [*schema.migrations(), "SELECT pg_terminate_backend(pg_backend_pid())"]
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: texts)
        with (
            pytest.raises(DatabaseUnavailable, match="terminating connection.*check that the server runs"),
            opened(name),
        ):
            pass
    with opened(name):
        assert meta(look, name)["version"] == str(schema.newest_version())


def test_migrations_are_made_one_after_the_other(
    look: psycopg.Connection[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a transaction of its own, until there is none left."""
    texts = [*schema.migrations(), "CREATE TABLE {schema}.one (x int)", "ALTER TABLE {schema}.one ADD y int"]
    monkeypatch.setattr(schema, "migrations", lambda: texts)

    with opened(name):
        assert meta(look, name)["version"] == str(len(texts))


def test_installations_of_other_names_have_nothing_in_common(name: str, make_name: Callable[[], str]) -> None:
    """Two schemas of one database are two databases."""
    with opened(name) as one, opened(make_name()) as other:
        one.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        assert one.installation != other.installation


@pytest.mark.parametrize(
    "hostile",
    ["pg_catalog", "pg_mine", "x;DROP TABLE y", 'a"b', "A", "", "1x", "x y", "x.y", "ü", "a" * 64, "a%00"],
)
def test_a_name_that_would_have_to_be_quoted_is_refused(hostile: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        open_database(with_query(postgres_url(), f"schema={hostile}"), clock=ManualClock(), auto_migrate=True)


@pytest.mark.parametrize("path", ["", "pg_temp", "nowhere", '"$user"'])
def test_the_search_path_does_not_matter(name: str, path: str) -> None:
    """Every name is said in full."""
    query = f"&options=-c%20search_path%3D{path or chr(39) * 2}"
    with opened(name, query=query) as database:
        assert database.write_sync(lambda: cancel_runs(NAMESPACE, Filter())) == 0

        assert database.read_sync(lambda: list_workers(NAMESPACE)) == []


class Role:
    """A user who may do only what he is granted."""

    def __init__(self, look: psycopg.Connection[Any]) -> None:
        self._look = look
        self.name = f"r{secrets.token_hex(8)}"
        look.execute(f"CREATE ROLE {self.name} LOGIN PASSWORD 'secret'")
        self.url = psycopg.conninfo.make_conninfo(postgres_url())
        found = psycopg.conninfo.conninfo_to_dict(postgres_url())
        self.url = f"postgresql://{self.name}:secret@{found['host']}:{found.get('port', 5432)}/{found['dbname']}"

    def drop(self) -> None:
        self._look.execute(f"DROP OWNED BY {self.name}; DROP ROLE {self.name}")


@pytest.fixture
def role(look: psycopg.Connection[Any]) -> Iterator[Role]:
    role = Role(look)
    yield role
    role.drop()


def test_a_role_that_may_not_create_a_schema_is_told_so(role: Role, name: str) -> None:
    with (
        pytest.raises(DatabaseUnavailable, match=r"permission denied.*grant the role") as told,
        opened(name, url=role.url),
    ):
        pass
    assert "secret" not in str(told.value)


def test_a_role_that_may_only_use_the_tables_can_work(look: psycopg.Connection[Any], role: Role, name: str) -> None:
    """For people whose DBAs run the DDL: it needs no right to change the schema."""
    with opened(name):
        pass
    look.execute(
        f"GRANT USAGE ON SCHEMA {name} TO {role.name};"
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {name} TO {role.name}"
    )

    with opened(name, url=role.url, auto_migrate=False) as database:
        assert database.write_sync(lambda: cancel_runs(NAMESPACE, Filter())) == 0

        with database.transaction_sync() as transaction:
            assert transaction.run_sync(start_runs(NAMESPACE, [])) == []


def test_a_role_that_may_not_see_the_tables_is_told_so(role: Role, name: str) -> None:
    with opened(name):
        pass

    with pytest.raises(DatabaseUnavailable, match=r"permission denied.*grant the role"), opened(name, url=role.url):
        pass


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_of_another_encoding_is_refused(look: psycopg.Connection[Any], name: str, encoding: str) -> None:
    """Else an error that has a character too many could not be recorded, ever."""
    look.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")  # type: ignore[call-overload]
    url = f"{postgres_url().rpartition('/')[0]}/{name}"
    try:
        with pytest.raises(DatabaseUnavailable, match=f"encoding is {encoding}.*UTF8"), opened("x", url=url):
            pass
    finally:
        look.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


def test_the_environments_encoding_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    with opened(name) as database:
        assert database.write_sync(lambda: cancel_runs(NAMESPACE, Filter())) == 0


def test_the_doctor_tells_a_role_that_may_not_see_the_tables(role: Role, name: str) -> None:
    """It is run where something is wrong, rights among other things."""
    with opened(name):
        pass
    database = open_database(f"{role.url}?schema={name}", clock=ManualClock(), auto_migrate=False)

    with contextlib.closing(database):
        found = {what: (verdict, told) for what, verdict, told in database.diagnose()}

    assert found["server"][0] == "ok"
    assert found["schema"][0] == "error"
    assert "permission denied" in found["schema"][1]
    assert "USAGE on the schema" in found["schema"][1]


def test_a_database_that_is_not_there_is_said_so() -> None:
    url = postgres_url().rpartition("/")[0] + "/no_such_database"

    with pytest.raises(DatabaseUnavailable, match=r'database "no_such_database" does not exist'), opened("x", url=url):
        pass


def test_a_server_that_cannot_be_reached_is_said_so() -> None:
    url = "postgresql://nobody:secret@127.0.0.1:1/x"

    with (
        pytest.raises(DatabaseUnavailable, match=r"127.0.0.1:1/x.*check that the server runs") as told,
        opened("x", url=url),
    ):
        pass
    assert "secret" not in str(told.value)


def test_closing_and_opening_again(name: str) -> None:
    with opened(name) as database:
        database.close()
        database.close()
        assert database.read_sync(lambda: list_workers(NAMESPACE)) == []
        database.open()
        database.open()


def test_a_closed_database_leaves_no_thread_and_no_session(look: psycopg.Connection[Any], name: str) -> None:
    before = set(threading.enumerate())
    with opened(name, query=f"&application_name={name}") as database:
        database.write_sync(lambda: cancel_runs(NAMESPACE, Filter()))
        database.read_sync(lambda: list_workers(NAMESPACE))
        with database.transaction_sync():
            pass
        assert sessions(look, name) >= 3
    left = {one.name for one in set(threading.enumerate()) - before}
    assert left.isdisjoint({"action-retrier-writer", "action-retrier-reader", "action-retrier-line"})
    until(lambda: sessions(look, name) == 0)  # the server takes a moment to notice


def sessions(look: psycopg.Connection[Any], name: str) -> int:
    return len(look.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", [name]).fetchall())
