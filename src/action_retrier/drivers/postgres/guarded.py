"""
The connections that user code receives: it may do anything on them but end the transaction.

What is refused here has not happened. What gets past, straight to libpq for instance, is noticed
after the call (see `PostgresTransaction.user_code`).
"""

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import psycopg
from psycopg import sql
from psycopg.abc import Query
from psycopg.rows import tuple_row

from .. import LENT

_NOT_CODE = re.compile(
    r"""
    '(?:[^'\\]|''|\\.)*'            # a literal
    | "(?:[^"]|"")*"                    # a name
    | (?P<dollar>\$\w*\$).*?(?P=dollar)
    | --[^\n]*
    | /\*.*?\*/
    """,
    re.VERBOSE | re.DOTALL,
)
_ENDING = re.compile(
    r"\s*(commit|end|abort|prepare\s+transaction|rollback(?!(\s+(work|transaction))?\s+to\b))\b", re.IGNORECASE
)


def ending_in(text: str) -> str | None:
    """Return the statement of *text* that would end a transaction, in capitals; None if there is none."""
    if not _MENTIONS.search(text):
        return None
    for statement in _NOT_CODE.sub(" ", text).split(";"):
        found = _ENDING.match(statement)
        if found:
            return " ".join(found[1].split()).upper()
    return None


_MENTIONS = re.compile(r"commit|end|abort|prepare|rollback", re.IGNORECASE)


class _Guard:
    """What user code has tried, as long as it holds the connection."""

    tried: list[str] | None = None

    def refuse(self, what: str) -> NoReturn:
        """Note what was tried, and raise."""
        assert self.tried is not None
        self.tried.append(what)
        raise psycopg.ProgrammingError(f"user code tried to {what}: {LENT}")

    def check(self, query: Query) -> None:
        """Refuse a statement that would end the transaction."""
        if self.tried is None:
            return
        if isinstance(query, sql.Composable):
            text = query.as_string(None)
        else:
            text = query.decode(errors="replace") if isinstance(query, bytes) else str(query)
        ending = ending_in(text)
        if ending is not None:
            self.refuse(ending)


class _GuardedCursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _guard_of(self).check(query)
        return super().execute(query, *args, **kwargs)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        _guard_of(self).check(query)
        super().executemany(query, *args, **kwargs)

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        _guard_of(self).check(statement)
        return super().copy(statement, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        _guard_of(self).check(query)
        return super().stream(query, *args, **kwargs)


class _GuardedAsyncCursor(psycopg.AsyncCursor[Any]):
    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _guard_of(self).check(query)
        return await super().execute(query, *args, **kwargs)

    async def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        _guard_of(self).check(query)
        await super().executemany(query, *args, **kwargs)

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        _guard_of(self).check(statement)
        return super().copy(statement, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _guard_of(self).check(query)
        return super().stream(query, *args, **kwargs)


def _guard_of(cursor: Any) -> _Guard:
    guard = cursor.connection.guard
    assert isinstance(guard, _Guard)
    return guard


class UserConnection(psycopg.Connection[Any]):
    """A blocking one."""

    is_abandoned = False
    """Some thread may still be using it. So nobody closes it: its descriptor would be given to the next connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = _Guard()
        self.own_threshold = self.prepare_threshold
        self.settle()

    def __del__(self, *_: object) -> None:  # psycopg's warns of a connection that nobody closed
        pass

    def settle(self) -> None:
        """Be as new for the next one: what user code has set on it was its own."""
        self.cursor_factory, self.server_cursor_factory = _GuardedCursor, psycopg.ServerCursor
        self.row_factory = tuple_row
        self.prepare_threshold = self.own_threshold
        self._adapters = None

    def commit(self) -> None:
        """Commit, unless user code holds the connection."""
        if self.guard.tried is not None:
            self.guard.refuse("COMMIT")
        super().commit()

    def rollback(self) -> None:
        """Roll back, unless user code holds the connection."""
        if self.guard.tried is not None:
            self.guard.refuse("ROLLBACK")
        super().rollback()


class AsyncUserConnection(psycopg.AsyncConnection[Any]):
    """
    An async one.

    Attributes:
        prepared: The statements of ours that are prepared on it, and their names there.
    """

    is_abandoned = False
    """Some thread may still be using it. So nobody closes it: its descriptor would be given to the next connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard = _Guard()
        self.own_threshold = self.prepare_threshold
        self.prepared: dict[str, str] = {}
        self.settle()

    def __del__(self, *_: object) -> None:  # psycopg's warns of a connection that nobody closed
        pass

    def settle(self) -> None:
        """Be as new for the next one: what user code has set on it was its own."""
        self.cursor_factory, self.server_cursor_factory = _GuardedAsyncCursor, psycopg.AsyncServerCursor
        self.row_factory = tuple_row
        self.prepare_threshold = self.own_threshold
        self._adapters = None

    async def commit(self) -> None:
        """Commit, unless user code holds the connection."""
        if self.guard.tried is not None:
            self.guard.refuse("COMMIT")
        await super().commit()

    async def rollback(self) -> None:
        """Roll back, unless user code holds the connection."""
        if self.guard.tried is not None:
            self.guard.refuse("ROLLBACK")
        await super().rollback()


class BlockingTwin(UserConnection):
    """
    The blocking colour of an async connection: the same session of the server's, which it does not own.

    For a thread that uses it while the event loop leaves the connection alone.
    """

    def __init__(self, owner: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(owner.pgconn)
        self._prepared = owner._prepared  # noqa: SLF001 - which statements the session has is known once, or not at all
        if isinstance(owner, AsyncUserConnection):
            self.guard = owner.guard
