"""``migrate``."""

from typing import Annotated

import typer

from .loading import database_of, make_app
from .options import AppOption, DatabaseOption, JsonOption, NamespaceOption
from .terminal import print_json, say


def migrate(
    *,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL that does it on an empty database instead.")
    ] = False,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """
    Create the tables, or upgrade them.

    Workers of the version before keep working meanwhile. Of SQLite's, the file is created if there is none; on
    PostgreSQL the database has to be there.
    """
    found = make_app(app, database, namespace)
    if sql:
        script = database_of(found).schema_sql()
        print_json({"sql": script}) if json else say(script.rstrip("\n"))
        return
    version = database_of(found).migrate()
    if json:
        print_json({"database": found.location, "version": version})
    else:
        say(f"{found.location}: schema version {version} is in place")
