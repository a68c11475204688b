"""The SQL files: each can be prepared, is used, says what it takes, and seeks where it must."""

import ast
import contextlib
import re
import sqlite3
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest

import action_retrier
from action_retrier.drivers import open_database
from action_retrier.drivers.postgres import connection as postgres
from action_retrier.testing import ManualClock

from ..stores import postgres_schemas

SQL = Path(str(resources.files("action_retrier") / "_sql"))
DIALECTS = sorted(folder.name for folder in SQL.iterdir() if folder.is_dir() and not folder.name.startswith("_"))
PACKAGE = Path(action_retrier.__file__).parent


POSTGRES_ONLY = {
    # Leases are rows there, not files, and a row's lock may be somebody else's.
    "renew_worker",
    "select_leases",
    # Workers that sleep are notified of what is started, if they have asked for it.
    "publish_worker",
    # A handle of the user's is asked which database it is on.
    "select_installation",
    # A COMMIT whose answer was lost is looked up.
    "select_fate",
    "touch_meta",
}
"""Statements that the driver itself sends, about what SQLite does without SQL."""
SQLITE_ONLY = {
    # A handle of the user's is asked which database it is on, in statements that it lets through.
    "select_file",
    "select_meta",
    # It begins as a writer, also where something in between has begun for it.
    "take_write_lock",
}
"""Likewise, the other way round."""


ROW_BY_ROW = {
    "insert_runs": {
        "id",
        "action",
        "queue",
        "on_complete",
        "priority",
        "at",
        "delay",
        "deadline",
        "key",
        "options",
        "context",
        "args",
    },
}
"""Statements that PostgreSQL is sent once for many rows, as JSON, and SQLite once for each: the fields of a row."""
SQLITE_ASKS = {"installation"}  # a handle of the user's leads to it, or nothing is done


def names(dialect: str) -> set[str]:
    return {file.stem for file in (SQL / dialect).glob("*.sql")}


STATEMENTS = sorted(names("sqlite") - SQLITE_ONLY)
EVERY = [(dialect, name) for dialect in DIALECTS for name in sorted(names(dialect))]
every = pytest.mark.parametrize(("dialect", "name"), EVERY, ids=lambda part: part)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)


def read(name: str, dialect: str = "sqlite") -> str:
    return (SQL / dialect / f"{name}.sql").read_text("utf-8")


def body(text: str) -> str:
    """Return a statement without its comments."""
    return re.sub(r"--.*", "", text)


def parameters(name: str, dialect: str = "sqlite") -> set[str]:
    return set(re.findall(r"(?<!:):(\w+)", body(read(name, dialect))))


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("statements") / "app.db"
    database = open_database(f"sqlite:///{path}", clock=ManualClock(), auto_migrate=True)
    database.open()
    database.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


class Server:
    """A session of a real server, and a schema in it."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema

    def prepare(self, name: str) -> None:
        """Have the server parse and plan a statement, with every parameter NULL."""
        self.connection.execute(
            b"EXPLAIN " + postgres.query(name, self.schema), dict.fromkeys(parameters(name, "postgres"))
        )

    def plan(self, name: str) -> list[dict[str, Any]]:
        """Return the nodes of the plan for any parameters, where tables are not read whole if there is another way."""
        order = postgres.parameters(name, self.schema)
        text = postgres.sql(name, self.schema)
        numbered = re.sub(r"(?<!:):(\w+)", lambda found: f"${order.index(found[1]) + 1}", text)
        self.connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off")
        (found,) = self.connection.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {numbered}".encode()).fetchone() or ()
        return list(_nodes(found[0]["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", ()):
        yield from _nodes(inner)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    schemas = postgres_schemas()
    schema = schemas.take()
    with contextlib.closing(psycopg.connect(schemas.url, autocommit=True)) as connection:
        yield Server(connection, schema)
    schemas.give_back(schema)


def plan(connection: sqlite3.Connection, name: str) -> list[str]:
    given = dict.fromkeys(parameters(name))
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {read(name)}", given)]


def test_every_dialect_has_the_same_statements() -> None:
    """One operation, two databases: the same names on both sides, but for what a driver needs for itself."""
    assert DIALECTS == ["postgres", "sqlite"]
    assert names("postgres") - names("sqlite") == POSTGRES_ONLY
    assert names("sqlite") - names("postgres") == SQLITE_ONLY


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_dialect_takes_the_same_parameters(name: str) -> None:
    given = parameters(name, "sqlite") - SQLITE_ASKS
    if name in ROW_BY_ROW:
        assert ROW_BY_ROW[name] <= given
        given = given - ROW_BY_ROW[name] | {"rows"}
    assert parameters(name, "postgres") == given


def test_the_rows_that_are_sent_one_by_one_have_the_same_fields_on_both() -> None:
    for name, fields in ROW_BY_ROW.items():
        (told,) = re.findall(r"AS one \((.*?)\)", body(read(name, "postgres")), re.DOTALL)
        assert {part.split()[0] for part in told.split(",")} == fields


def test_every_statement_is_sent_by_an_operation_and_the_other_way_round() -> None:
    """Neither a file that nobody sends nor a name that has no file."""
    sent: dict[str, set[str]] = {"sqlite": set(), "postgres": set(), "": set()}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            is_statement = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Statement"
            if is_statement and isinstance(node.args[0], ast.Constant):
                driver = file.relative_to(PACKAGE / "drivers").parts[0] if PACKAGE / "drivers" in file.parents else ""
                sent[driver if driver in sent else ""].add(node.args[0].value)

    by_handles = {"select_table"}
    assert sent == {
        "": set(STATEMENTS) - by_handles,
        "sqlite": SQLITE_ONLY | by_handles,
        "postgres": POSTGRES_ONLY | by_handles,
    }


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_can_be_prepared_on_sqlite(connection: sqlite3.Connection, name: str) -> None:
    """One statement a file, on the schema as it is installed."""
    assert sqlite3.complete_statement(read(name))
    connection.execute(f"EXPLAIN {read(name)}", dict.fromkeys(parameters(name)))


@pytest.mark.parametrize("name", sorted(names("postgres")))
def test_a_statement_can_be_prepared_on_postgres(server: Server, name: str) -> None:
    """One statement a file, on the schema as it is installed."""
    assert body(read(name, "postgres")).strip().endswith(";")
    assert body(read(name, "postgres")).count(";") == 1
    server.prepare(name)


@every
def test_a_statement_says_what_it_takes(dialect: str, name: str) -> None:
    """Every parameter stands in the header, or the header refers to the one that it stands in."""
    header = re.search(r"-- In: (.*?)-- Out:", read(name, dialect), re.DOTALL)
    assert header is not None
    told = header[1]
    for other in re.findall(r"(?:as for|and) (\w+_\w+)", told):
        if other in STATEMENTS:
            told += read(other, dialect)

    assert {one for one in parameters(name, dialect) if not re.search(rf"\b{one}\b", told)} <= {"now"}


@every
def test_every_parameter_is_cast(dialect: str, name: str) -> None:
    """Its type is the statement's to say: SQLite compares by it, and PostgreSQL refuses to guess."""
    uncast = re.findall(r"(?<!CAST\()(?<!:):\w+", body(read(name, dialect)))

    assert uncast == []


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_null_test_in_returning(name: str) -> None:
    """SQLite (3.40 for one) answers IS NULL wrongly in a RETURNING clause."""
    _, found, returning = body(read(name)).partition("RETURNING")

    assert not found or not re.search(
        r"\bIS\s+(NOT\s+)?(NULL|DISTINCT)\b|\bcoalesce\b|\bifnull\b", returning, re.IGNORECASE
    )


def test_the_database_does_answer_null_tests_wrongly_there_or_has_been_mended() -> None:
    """What the rule above is about; it can go once no supported SQLite does this."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (id TEXT NOT NULL, other TEXT)")
        connection.execute("INSERT INTO t (id) VALUES ('a')")
        (answer,) = connection.execute("UPDATE t SET id = 'b' RETURNING other IS NULL").fetchone()

    assert answer == (0 if sqlite3.sqlite_version_info < (3, 41) else answer)


def conditions(name: str, dialect: str, before: str) -> str:
    """Return the conditions of a statement's last WHERE before a word, in one line."""
    return " ".join(body(read(name, dialect)).partition(before)[0].rpartition("WHERE")[2].split())


@pytest.mark.parametrize("name", ["finish_runs", "reschedule_runs", "update_progress"])
@pytest.mark.parametrize(
    ("dialect", "before", "fence"),
    [
        ("sqlite", "RETURNING", r"r\.id = \w+\.id AND r\.state = 'running' AND r\.attempt = \w+\.attempt"),
        # There the row is locked first; its state is compared so that no index is used that every claim changes.
        ("postgres", "FOR UPDATE", r"r\.id = \w+\.id AND r\.attempt = \w+\.attempt AND r\.state \|\| '' = 'running'"),
    ],
    ids=DIALECTS[::-1],
)
def test_every_write_of_an_attempt_is_fenced(dialect: str, before: str, fence: str, name: str) -> None:
    """I2: `id`, `state = 'running'`, `attempt`."""
    assert re.search(fence, conditions(name, dialect, before))


@every_dialect
@pytest.mark.parametrize("name", ["finish_callback", "postpone_callback"])
def test_every_write_of_a_callbacks_try_is_fenced(dialect: str, name: str) -> None:
    """I4: the callback is pending, and the try is the current one of this worker."""
    where = conditions(name, dialect, "RETURNING")

    for condition in ("id = ", "callback_state = 'pending'", "callback_worker = ", "callback_tries = "):
        assert condition in where


# Plans: what must be a seek however much there is.

LANES = "action_retrier_runs_lanes"
SCANS = {
    # What is under way now: as many as are in flight.
    "cancel_runs": {"SCAN r USING INDEX action_retrier_runs_running"},
    "select_runs": {"SCAN r USING INDEX action_retrier_runs_running"},
    "select_owners": {"SCAN action_retrier_runs USING INDEX action_retrier_runs_running"},
    "count_owned": {"SCAN action_retrier_runs USING INDEX action_retrier_runs_running"},
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_scans_the_runs(connection: sqlite3.Connection, name: str) -> None:
    """Completed runs cost nothing: each table of ours is reached by an index, but for what is listed here."""
    aliases = {"action_retrier_runs", "action_retrier_attempts"}
    aliases |= set(re.findall(r"action_retrier_(?:runs|attempts) AS (\w+)", body(read(name))))
    scans = {step for step in plan(connection, name) if step.startswith("SCAN ") and step.split()[1] in aliases}
    # The first lane is found at the beginning of its index, with LIMIT 1.
    scans -= {f"SCAN action_retrier_runs USING INDEX {LANES}"}
    scans -= {f"SCAN action_retrier_runs USING COVERING INDEX {LANES}"}

    assert scans <= SCANS.get(name, set())


@pytest.mark.parametrize(
    ("name", "seek"),
    [
        (
            "claim_runs",
            f"SEARCH due USING INDEX {LANES} "
            "(namespace=? AND queue=? AND action=? AND on_complete=? AND priority=? AND due_at>? AND due_at<?)",
        ),
        (
            "next_due",
            f"SEARCH due USING INDEX {LANES} "
            "(namespace=? AND queue=? AND action=? AND on_complete=? AND priority=? AND due_at>?)",
        ),
        ("next_due", "SEARCH c USING INDEX action_retrier_runs_callbacks (namespace=? AND on_complete=?)"),
        ("next_due", "SEARCH r USING INDEX action_retrier_runs_suspects (namespace=?)"),
        ("next_due", "SEARCH r USING INDEX action_retrier_runs_deadlines (namespace=? AND deadline_at>?)"),
        (
            "claim_callbacks",
            "SEARCH c USING INDEX action_retrier_runs_callbacks (namespace=? AND on_complete=? AND callback_due_at<?)",
        ),
        ("claim_suspects", "SEARCH r USING INDEX action_retrier_runs_suspects (namespace=? AND due_at<?)"),
        ("expire_runs", "SEARCH r USING INDEX action_retrier_runs_deadlines (namespace=? AND deadline_at<?)"),
        (
            "select_keys",
            "SEARCH r USING INDEX action_retrier_runs_keys (namespace=? AND action=? AND idempotency_key=?)",
        ),
        ("select_worker_runs", "SEARCH action_retrier_runs USING INDEX action_retrier_runs_running (worker=?)"),
        (
            "select_worker_callbacks",
            "SEARCH action_retrier_runs USING INDEX action_retrier_runs_callers (callback_worker=?)",
        ),
        ("finish_runs", "SEARCH r USING INDEX sqlite_autoindex_action_retrier_runs_1 (id=?)"),
        ("reschedule_runs", "SEARCH r USING INDEX sqlite_autoindex_action_retrier_runs_1 (id=?)"),
        (
            "select_old",
            "SEARCH action_retrier_runs USING INDEX action_retrier_runs_completed (completed_at>? AND completed_at<?)",
        ),
    ],
)
def test_what_workers_ask_for_is_a_seek(connection: sqlite3.Connection, name: str, seek: str) -> None:
    """Claims, polls and reports go straight to what they want."""
    assert seek in [step.replace("COVERING ", "") for step in plan(connection, name)]


def test_every_index_is_used(connection: sqlite3.Connection) -> None:
    """An index that no statement uses only costs writes. The unique one keeps keys apart as well."""
    indexes = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")
        if name.startswith("action_retrier_")
    }
    steps = " ".join(step for name in STATEMENTS for step in plan(connection, name))

    assert {index for index in indexes if index not in steps} == set()


def test_indexes_cover_live_work_only(connection: sqlite3.Connection) -> None:
    """A run that has completed stands in none of the indexes that claims and polls use."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    conditions = {name.removeprefix("action_retrier_runs_"): sql.partition("WHERE")[2].strip() for name, sql in rows}

    assert conditions["lanes"] == "state = 'pending' AND losses = 0"
    assert conditions["suspects"] == "state = 'pending' AND losses > 0"
    assert conditions["deadlines"].startswith("state = 'pending'")
    assert conditions["running"] == "state = 'running'"
    assert conditions["callbacks"] == "callback_state = 'pending'"


# The same on PostgreSQL, whose planner reads small tables whole unless it is kept from it.


@pytest.mark.parametrize("name", sorted(names("postgres")))
def test_no_statement_has_to_read_the_runs_whole_on_postgres(server: Server, name: str) -> None:
    """Completed runs cost nothing: there is an index for whatever is asked."""
    whole = {
        node["Relation Name"]
        for node in server.plan(name)
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in {"runs", "attempts"}
    }

    assert whole == set()


def test_every_index_is_used_on_postgres(server: Server) -> None:
    """An index that no statement uses only costs writes."""
    rows = server.connection.execute("SELECT indexname FROM pg_indexes WHERE schemaname = %s", [server.schema])
    used = {node["Index Name"] for name in names("postgres") for node in server.plan(name) if "Index Name" in node}

    assert {name for (name,) in rows} - used == set()


def test_indexes_cover_the_same_work_on_postgres(connection: sqlite3.Connection, server: Server) -> None:
    """The conditions of partial indexes are SQLite's, name by name."""
    sqlite = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    theirs = server.connection.execute(
        "SELECT indexname, pg_get_expr(indpred, indrelid) FROM pg_indexes"
        "  JOIN pg_index ON indexrelid = to_regclass(schemaname || '.' || indexname)"
        " WHERE schemaname = %s AND indpred IS NOT NULL",
        [server.schema],
    )

    def plain(condition: str) -> str:
        condition = re.sub(r"::text|[()\[\]]", "", condition).replace("<>", "!=")
        return " ".join(re.sub(r"= ANY ARRAY(.*)", r"IN \1", condition).split())

    ours = {name.removeprefix("action_retrier_"): plain(sql.partition("WHERE")[2]) for name, sql in sqlite}
    assert {name: plain(condition) for name, condition in theirs} == {name: text for name, text in ours.items() if text}
