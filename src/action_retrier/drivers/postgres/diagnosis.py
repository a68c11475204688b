"""Check a PostgreSQL database: what can be seen of it without changing it."""

import contextlib
from typing import Literal

from ...errors import DatabaseUnavailable
from .connection import connect
from .schema import found_version, newest_version
from .urls import Target

Check = tuple[str, Literal["ok", "warning", "error"], str]
"""What was checked, the verdict, and what was found and what to do."""

_OLDEST = 130000


def diagnose(target: Target) -> list[Check]:
    """Check the database that *target* leads to."""
    try:
        with contextlib.closing(connect(target)) as connection:
            number = connection.info.server_version
            checks: list[Check] = [("server", "ok", f"{target.location}, PostgreSQL {number // 10000}")]
            if number < _OLDEST:
                checks.append(("version", "error", f"PostgreSQL {number // 10000} is too old: 13 or later is needed"))
            version = found_version(connection, target.schema)
    except DatabaseUnavailable as error:
        return [("server", "error", str(error))]
    if version == newest_version():
        checks.append(("schema", "ok", f"version {version} in {target.schema}"))
    elif version == 0:
        checks.append(("schema", "error", f"there is none in {target.schema}: `action-retrier migrate` creates it"))
    elif version < newest_version():
        checks.append(("schema", "error", f"version {version} is old: `action-retrier migrate` upgrades it"))
    else:
        checks.append(("schema", "warning", f"version {version} is newer than this code"))
    return checks
