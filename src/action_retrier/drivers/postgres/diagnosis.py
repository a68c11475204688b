"""Check a PostgreSQL database: what can be seen of it without changing it."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import psycopg

from ...errors import DatabaseUnavailable
from .connection import CALL_S, connect, is_pooled, translated
from .deadlines import deadlines
from .schema import found_version, newest_version
from .urls import Target

Check = tuple[str, Literal["ok", "warning", "error"], str]
"""What was checked, the verdict, and what was found and what to do."""

_OLDEST = 130000
_LONG_S = 300
_CROWDED = 0.9

# What a role may not see of others' sessions is NULL, and then nothing is said of it.
_FACTS = """
SELECT pg_catalog.pg_is_in_recovery() AS is_standby,
       current_setting('fsync') = 'on' AS flushes,
       current_setting('synchronous_commit') <> 'off' AS waits_for_flush,
       current_setting('autovacuum') = 'on' AS vacuums,
       CAST(current_setting('max_connections') AS bigint) AS most_sessions,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend') AS sessions,
       (SELECT CAST(max(extract(epoch FROM clock_timestamp() - xact_start)) AS bigint)
          FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend') AS oldest_s
"""


def diagnose(target: Target) -> list[Check]:
    """Check the database that *target* leads to."""
    try:
        with (
            translated(target),
            contextlib.closing(connect(target)) as connection,
            deadlines.within(CALL_S, connection),
        ):
            return [*_of_server(connection, target), *_of_schema(connection, target)]
    except DatabaseUnavailable as error:
        return [("server", "error", str(error))]


def _of_server(connection: psycopg.Connection[Any], target: Target) -> Iterator[Check]:
    number = connection.info.server_version
    yield "server", "ok", f"{target.location}, PostgreSQL {number // 10000}"
    if number < _OLDEST:
        yield "version", "error", f"PostgreSQL {number // 10000} is too old: 13 or later is needed"
    if is_pooled(connection) or not target.direct:
        yield "pooler", "ok", "there is one: starts are noticed within a second, deaths of workers after 10 s"
    (facts,) = connection.execute(_FACTS.encode()).fetchall()
    if facts["is_standby"]:
        yield "primary", "error", "this server is a standby, and read-only: name the primary in the URL, or all hosts"
    if not facts["flushes"]:
        yield "durability", "warning", "fsync is off: a crash of the machine may damage the database, runs included"
    elif not facts["waits_for_flush"]:
        yield "durability", "warning", "synchronous_commit is off: what is committed last may be lost in a crash"
    else:
        yield "durability", "ok", "a commit is on disk before it is answered"
    if not facts["vacuums"]:
        yield "vacuum", "warning", "autovacuum is off: the tables grow, and get slower, until somebody runs VACUUM"
    if facts["oldest_s"] is not None and facts["oldest_s"] > _LONG_S:
        told = f"a transaction has been open for {facts['oldest_s']} s: nothing can be vacuumed meanwhile; find it in"
        yield "transactions", "warning", f"{told} pg_stat_activity (xact_start)"
    if facts["sessions"] > _CROWDED * facts["most_sessions"]:
        told = f"{facts['sessions']} of {facts['most_sessions']} sessions are taken"
        yield "connections", "warning", f"{told}: raise max_connections, or use a pooler"


def _of_schema(connection: psycopg.Connection[Any], target: Target) -> Iterator[Check]:
    try:
        with translated(target):
            version = found_version(connection, target.schema)
    except DatabaseUnavailable as error:  # nothing may be read there
        yield "schema", "error", str(error)
        return
    if version == newest_version():
        yield "schema", "ok", f"version {version} in {target.schema}"
    elif version == 0:
        yield "schema", "error", f"there is none in {target.schema}: `action-retrier migrate` creates it"
    elif version < newest_version():
        yield "schema", "error", f"version {version} is old: `action-retrier migrate` upgrades it"
    else:
        yield "schema", "warning", f"version {version} is newer than this code"
