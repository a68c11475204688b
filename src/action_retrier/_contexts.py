"""What a function receives as ``ctx``."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ._codec import ERROR_LIMIT, clean_text
from ._policy import check_number
from .errors import InvalidContext

if TYPE_CHECKING:
    from .drivers import Colour, Database, Transaction

StopReason = Literal["canceled", "timed_out", "deadline_exceeded", "lease_lost", "shutting_down"]
"""Why an attempt should stop."""


class AttemptSignals:
    """
    What passes between a worker and an attempt that it executes, from any thread.

    Both sides only assign and read attributes, which Python makes atomic.
    """

    __slots__ = ("progress", "stop_reason")

    def __init__(self) -> None:
        self.stop_reason: StopReason | None = None
        self.progress: tuple[float, str] | None = None


class _AttemptContext:
    """What both colours of action contexts have."""

    def __init__(
        self,
        *,
        run_id: str,
        attempt: int,
        max_attempts: int,
        database: "Database",
        signals: AttemptSignals,
        mutate: Callable[..., Any],
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.max_attempts = max_attempts
        self._database = database
        self._signals = signals
        self._mutate = mutate

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of run {self.run_id}, attempt {self.attempt}>"

    @property
    def canceled(self) -> bool:
        """True as soon as this attempt should stop, whatever the reason. Usable from any thread."""
        return self._signals.stop_reason is not None

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it should: canceled, timed_out, deadline_exceeded, lease_lost or shutting_down; None to go on."""
        return self._signals.stop_reason

    def raise_if_canceled(self) -> None:
        """
        Leave the action if this attempt should stop.

        Raises:
            asyncio.CancelledError: It should; `stop_reason` says why.
        """
        if self._signals.stop_reason is not None:
            raise asyncio.CancelledError(self._signals.stop_reason)

    def progress(self, fraction: float, message: str = "") -> None:
        """
        Say how far the action is; written to the database at most once a second.

        Args:
            fraction: From 0 to 1.
            message: For people; cut after 16 KiB.

        Raises:
            ValueError: *fraction* is out of range.
            TypeError: One of them is of the wrong type.
        """
        check_number("fraction", fraction, at_most=1)
        if not isinstance(message, str):
            raise TypeError(f"message must be a string, not {message!r}")
        self._signals.progress = (float(fraction), clean_text(message, ERROR_LIMIT))


class ActionCtx(_AttemptContext):
    """
    What an ``async def`` action receives as ``ctx``.

    Attributes:
        run_id: The same in every attempt: use it as the idempotency key of what the action does elsewhere.
        attempt: The number of this attempt, from 1.
        max_attempts: The number that the last attempt will have if all fail.
    """

    async def run_mutation(self, fn: Any, args: Mapping[str, Any] | None = None) -> Any:
        """Run a mutation in a transaction of its own and return what it returns; see ``App.run_mutation``."""
        result: Awaitable[Any] = self._mutate(fn, args)
        return await result


class SyncActionCtx(_AttemptContext):
    """What a ``def`` action receives as ``ctx``; like `ActionCtx`, and `run_mutation` blocks."""

    def run_mutation(self, fn: Any, args: Mapping[str, Any] | None = None) -> Any:
        """Run a mutation in a transaction of its own and return what it returns; see ``App.run_mutation``."""
        return self._mutate(fn, args)


class MutationCtx:
    """
    What a mutation receives as ``ctx``, and what ``app.transaction()`` gives: an open transaction.

    Commit and rollback belong to whoever opened it. Pass it to the retrier's methods to make
    them part of the transaction.
    """

    def __init__(self, transaction: "Transaction", database: "Database", colour: "Colour") -> None:
        self._transaction = transaction
        self._database = database
        self._colour = colour

    @property
    def db(self) -> Any:
        """
        The database's own connection with the transaction open.

        ``sqlite3.Connection`` on SQLite; ``psycopg.AsyncConnection`` or ``psycopg.Connection``,
        by the colour of the mutation, on PostgreSQL; the driver's connection where the App was made
        from a SQLAlchemy engine or a Django alias.
        """
        self._check_open()
        return self._transaction.connection(self._colour)

    @property
    def session(self) -> Any:
        """
        SQLAlchemy's session in this transaction, on an App that was made from an engine.

        ``Session`` where that is an ``Engine``, ``AsyncSession`` where it is an ``AsyncEngine``. It is flushed,
        and its transaction committed, by whoever opened it.
        """
        self._check_open()
        session = getattr(self._transaction, "session", None)
        if session is None:
            raise InvalidContext(
                problem="ctx has no session: its App was not made from a SQLAlchemy engine",
                remedy="make it with App(engine), or use ctx.db",
            )
        return session

    def _check_open(self) -> None:
        if not self._transaction.is_open:
            raise InvalidContext(
                problem="the transaction of this ctx has ended", remedy="do not keep ctx beyond its mutation or block"
            )
