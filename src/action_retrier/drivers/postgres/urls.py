"""What a ``postgresql://`` URL says to us and to libpq."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from .. import mask_password

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_WORDS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}


@dataclass(slots=True)
class Target:
    """
    A database and how to use it.

    Attributes:
        conninfo: For libpq; may name several hosts.
        location: Host, port and database, for people; no password.
        schema: Where the tables are.
        notify: Whether LISTEN and NOTIFY may be used to wake workers.
        direct: Whether a connection of ours is a session of the server's; False behind a pooler, also behind one
            that is only found out when the first connection is open.
    """

    conninfo: str
    location: str
    schema: str = "action_retrier"
    notify: bool = True
    direct: bool = True


def parse(url: str) -> Target:
    """
    Split *url* into what is ours and what is libpq's.

    ``schema``, ``notify`` and ``direct`` in its query are ours.

    Raises:
        ValueError: It cannot be used.
    """
    before, mark, query = url.partition("?")
    ours: dict[str, str] = {}
    theirs = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in {"schema", "notify", "direct"}:
            ours[name] = value
        else:
            theirs.append((name, value))
    conninfo = before + (mark + urlencode(theirs, quote_via=quote) if theirs else "")
    try:
        found = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        # libpq's own words quote the URL, password included.
        raise ValueError(
            f"database {mask_password(url)!r} is not a URL that libpq understands{_unknown(name for name, _ in theirs)}"
        ) from error
    if not _is_sound(found):
        # libpq takes a part of a password that was not encoded for something else, and would show it in its errors.
        raise ValueError(
            f"database {mask_password(url)!r} cannot be split into its parts: encode special characters of the "
            "password (/ as %2F, @ as %40, # as %23, ? as %3F)"
        )
    schema = ours.get("schema", "action_retrier")
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ValueError(
            f"schema must be lower-case letters, digits and underscores, and not begin with pg_: not {schema!r}"
        )
    return Target(
        conninfo,
        _location(found),
        schema,
        notify=_truth("notify", ours.get("notify", "true")),
        direct=_truth("direct", ours.get("direct", "true")),
    )


def _unknown(names: Iterable[str]) -> str:
    """Name the first parameter that nobody knows, if that is what is wrong, and what may have been meant."""
    known = {"schema", "notify", "direct", "ssl"} | {one.keyword.decode() for one in pq.Conninfo.get_defaults()}
    unknown = next((name for name in names if name not in known), None)
    if unknown is None:
        return ""
    meant = difflib.get_close_matches(unknown, sorted(known), n=1)
    return f": it has no parameter {unknown!r}" + (f"; did you mean {meant[0]}?" if meant else "")


def _is_sound(found: Mapping[str, object]) -> bool:
    ports = str(found.get("port") or "").split(",")
    names = (str(found.get(name) or "") for name in ("host", "dbname"))
    return all(not port or port.isdecimal() for port in ports) and not any("@" in name for name in names)


def _truth(name: str, word: str) -> bool:
    try:
        return _WORDS[word.lower()]
    except KeyError:
        raise ValueError(f"{name} in the database's URL must be true or false, not {word!r}") from None


def _location(found: Mapping[str, object]) -> str:
    hosts = str(found.get("host") or found.get("hostaddr") or "localhost").split(",")
    ports = str(found.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    where = ",".join(f"{host}:{port or 5432}" for host, port in zip(hosts, ports, strict=False))
    return f"postgresql://{where}/{found.get('dbname') or found.get('user') or ''}"
