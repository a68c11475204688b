"""Plans on PostgreSQL: how our sessions walk the runs, however young the table was when a plan was made."""

import re
from importlib import resources

import psycopg
import pytest

from action_retrier.drivers.postgres.connection import numbered, parameters
from action_retrier.drivers.postgres.session import _PLANNING

from ..stores import PostgresSystem, Store

FOLDER = resources.files("action_retrier") / "_sql" / "postgres"
STATEMENTS = sorted(
    file.name.removesuffix(".sql")
    for file in FOLDER.iterdir()
    if file.name.endswith(".sql") and "{schema}.runs" in file.read_text("utf-8")
)


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_reads_all_runs(store: Store, system: PostgresSystem, name: str) -> None:
    """A plan that is kept must not be one for a table of a few rows: nobody plans anew when there are a million."""
    schema = system.schema
    store.start()
    with psycopg.connect(system.url.partition("?")[0], autocommit=True) as connection:
        connection.execute(f"VACUUM ANALYZE {schema}.runs".encode())  # so small that to read it all is cheapest
        connection.execute(_PLANNING.encode())
        connection.execute(f"PREPARE it AS {numbered(name, schema).decode()}".encode())
        nothing = ", ".join("NULL" for _ in parameters(name, schema))
        given = f"({nothing})" if nothing else ""
        plan = [step for (step,) in connection.execute(f"EXPLAIN EXECUTE it{given}".encode())]

    assert plan
    assert [step for step in plan if re.search(r"Seq Scan on runs|Hash Join|Merge Join", step)] == []
