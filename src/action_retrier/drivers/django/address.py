"""From an alias in Django's settings to the address of its database."""

from typing import Any
from urllib.parse import quote, urlencode

# What Django takes from OPTIONS for itself, or hands to psycopg and not to libpq.
_NOT_LIBPQS = frozenset(
    {"assume_role", "context", "cursor_factory", "isolation_level", "pool", "prepare_threshold", "server_side_binding"}
)


def url_of(connection: Any) -> str:
    """
    Return our URL of the database that a connection of Django's leads to, with its password.

    Raises:
        ValueError: We cannot use it.
    """
    settings = connection.settings_dict
    match connection.vendor:
        case "sqlite":
            return _sqlite_url(str(settings["NAME"]), connection.alias)
        case "postgresql":
            return _postgres_url(settings)
    raise ValueError(
        f"database 'django:{connection.alias}' is on {connection.vendor}: this library knows PostgreSQL and SQLite"
    )


def _sqlite_url(name: str, alias: str) -> str:
    if name in {"", ":memory:"} or name.startswith("file:"):
        raise ValueError(
            f"database 'django:{alias}' is in memory, where no other connection reaches it: give it a file. For "
            f"Django's tests: DATABASES[{alias!r}]['TEST'] = {{'NAME': BASE_DIR / 'test.sqlite3'}}"
        )
    return f"sqlite:///{quote(name)}"


def _postgres_url(settings: dict[str, Any]) -> str:
    options = settings.get("OPTIONS") or {}
    parameters = {
        name: str(value)
        for name, value in options.items()
        if name not in _NOT_LIBPQS and isinstance(value, str | int | float)
    }
    if options.get("assume_role"):
        parameters["options"] = f"{parameters.get('options', '')} -c role={options['assume_role']}".strip()
    told = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    parameters |= {name: str(settings[key]) for name, key in told.items() if settings.get(key)}
    return f"postgresql:///?{urlencode(parameters, quote_via=quote)}"
