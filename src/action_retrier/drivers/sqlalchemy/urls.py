"""From a SQLAlchemy engine to the address of its database."""

from collections.abc import Sequence
from urllib.parse import quote, urlencode

from sqlalchemy.engine import URL, Engine

from .. import mask_password

_DRIVERS = {"sqlite": ("pysqlite", "aiosqlite"), "postgresql": ("psycopg", "asyncpg")}
_LIBPQS_NAME = {"ssl": "sslmode"}  # asyncpg's
_NOT_LIBPQS = frozenset(
    {
        "async_fallback",
        "autocommit",
        "command_timeout",
        "max_cacheable_statement_size",
        "max_cached_statement_lifetime",
        "prepare_threshold",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "statement_cache_size",
        "timeout",
    }
)
_REMEDY = "give the App the database's URL instead, and pass sessions of the engine as ctx"


def url_of(engine: Engine) -> str:
    """
    Return our URL of the database that *engine* connects to, with its password.

    Raises:
        ValueError: It is not of a kind that we can use, or its address cannot be told.
    """
    url, dialect, shown = engine.url, engine.dialect, shown_url(engine)
    if dialect.name not in _DRIVERS or dialect.driver not in _DRIVERS[dialect.name]:
        raise ValueError(
            f"engine {shown!r} is of a kind that this library cannot use: make it with postgresql+psycopg, "
            "postgresql+asyncpg, sqlite or sqlite+aiosqlite"
        )
    _refuse_hidden_address(engine, shown)
    return _sqlite_url(url, shown) if dialect.name == "sqlite" else _postgres_url(url, shown)


def shown_url(engine: Engine) -> str:
    """Return the engine's URL with its passwords masked, those in its query too."""
    return mask_password(engine.url.render_as_string(hide_password=True))


def _sqlite_url(url: URL, shown: str) -> str:
    name = url.database or ""
    if name in {"", ":memory:"} or name.startswith("file:"):
        raise ValueError(
            f"engine {shown!r} has no plain file: runs have to survive the process, and other connections have to "
            "reach them, so use sqlite:///file.db (a temporary file in tests)"
        )
    return f"sqlite:///{quote(name)}"


def _postgres_url(url: URL, shown: str) -> str:
    parameters: dict[str, str] = {}
    for name, value in url.query.items():
        if name == "host":
            parameters |= _hosts([value] if isinstance(value, str) else value)
        elif name not in _NOT_LIBPQS:
            parameters[_LIBPQS_NAME.get(name, name)] = value if isinstance(value, str) else ",".join(value)
    told = {"host": url.host, "port": url.port, "user": url.username, "password": url.password, "dbname": url.database}
    parameters |= {name: str(value) for name, value in told.items() if value is not None}
    if not {"host", "hostaddr", "service"} & set(parameters):
        # Arguments of connect may know more; libpq's defaults would lead to some other server.
        raise ValueError(f"engine {shown!r} does not tell its host in its URL: {_REMEDY}")
    return f"postgresql:///?{urlencode(parameters, quote_via=quote)}"


def _hosts(given: Sequence[str]) -> dict[str, str]:
    """Split SQLAlchemy's ``host:port``, once for each host, the way that libpq has it; a path is a socket."""
    pairs = [one.rpartition(":") if not one.startswith("/") else (one, "", "") for one in ",".join(given).split(",")]
    found = {"host": ",".join(host or port for host, _, port in pairs)}
    if any(host and port for host, _, port in pairs):
        found["port"] = ",".join(port if host and port else "5432" for host, _, port in pairs)
    return found


def _refuse_hidden_address(engine: Engine, shown: str) -> None:
    """Raise ValueError where connections are made from something else than the URL."""
    made_by = getattr(engine.pool, "_creator", None)
    is_ordinary = getattr(made_by, "__module__", "sqlalchemy.engine.create") == "sqlalchemy.engine.create"
    if not is_ordinary or engine.dialect.dispatch.do_connect:
        raise ValueError(
            f"engine {shown!r} makes its connections by a function of its own (a creator, or an event), so that its "
            f"database cannot be told: {_REMEDY}"
        )
