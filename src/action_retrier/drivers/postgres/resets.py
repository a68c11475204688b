"""What takes back what user code has set on a session, or has left in it."""

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from .connection import Cursor

_SETTINGS: Final = ("RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL")
_LEFTOVERS: Final = ("CLOSE ALL", "DISCARD TEMP", "UNLISTEN *")
_UNLOCK: Final = "SELECT pg_catalog.pg_advisory_unlock_all()"


@dataclass(frozen=True, slots=True)
class Resets:
    """
    Statements, as far as the server knows them: some that speak PostgreSQL's language know less.

    Attributes:
        settings: Take back what was set, in a transaction or outside of one.
        leftovers: End what was left in the session.
        unlock: Releases the session's locks. They are in others' way for as long as a connection idles.
    """

    settings: tuple[str, ...] = _SETTINGS
    leftovers: tuple[str, ...] = (*_LEFTOVERS, _UNLOCK)
    unlock: tuple[str, ...] = (_UNLOCK,)


EVERYTHING: Final = Resets()


def resets_known_to(connection: psycopg.Connection[Any]) -> Resets:
    """Ask the server: all at once, and only if that fails one after the other."""
    if _knows(connection, "; ".join((*EVERYTHING.settings, *EVERYTHING.leftovers))):
        return EVERYTHING
    settings, leftovers, unlock = (
        tuple(text for text in texts if _knows(connection, text))
        for texts in (EVERYTHING.settings, EVERYTHING.leftovers, EVERYTHING.unlock)
    )
    return Resets(settings, leftovers, unlock)


def _knows(connection: psycopg.Connection[Any], text: str) -> bool:
    try:
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(text.encode(), prepare=False)
    except (psycopg.ProgrammingError, psycopg.NotSupportedError):
        return False
    return True
