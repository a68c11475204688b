"""Transactions of a user's engine, with the session that user code receives."""

import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from ..._threads import DaemonThreads
from ..handle import Handle
from ..lent_transaction import AwaitedTransaction, BlockingTransaction, refuse

if TYPE_CHECKING:  # importing it takes greenlet, which blocking programs need not have
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession


class _Guard:
    """
    Notices what would end the transaction, as long as user code holds the session or the connection.

    A session lives in a savepoint, so that a flush that fails, after which SQLAlchemy rolls back by itself, does
    not take along what is not the session's. A commit is refused. A rollback may be SQLAlchemy's own: it happens,
    the error that it follows goes its way, and who swallows that finds the transaction refused at the end.
    """

    def __init__(self, connection: Connection) -> None:
        self._tried: set[str] | None = None
        event.listen(connection, "commit", lambda _: self._refuse_commit())
        event.listen(connection, "rollback", lambda _: self._note("rolled back"))

    def watch(self, session: Session) -> None:
        """Begin. What a session does within itself, its connection does not hear of."""
        self._tried = set()
        event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_soft_rollback", self._after_rollback)

    def _before_commit(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            self._refuse_commit()

    def _after_rollback(self, session: Session, ended: SessionTransaction) -> None:  # noqa: ARG002 - SQLAlchemy's
        if ended.parent is None:
            self._note("rolled back")

    def _refuse_commit(self) -> None:
        if self._tried is not None:
            self._note("committed")
            _refuse("committed")

    def _note(self, what: str) -> None:
        if self._tried is not None:
            self._tried.add(what)

    def end(self) -> set[str]:
        """Notice nothing more; return what was tried."""
        tried, self._tried = self._tried or set(), None
        return tried


def _refuse(*tried: str) -> NoReturn:
    refuse(f"{' and '.join(sorted(tried))} through ctx.session, or its connection")


class EngineTransaction(BlockingTransaction):
    """A transaction of a blocking engine."""

    def __init__(
        self, connection: Connection, handle: Handle, turn: contextlib.ExitStack, lane: DaemonThreads | None
    ) -> None:
        super().__init__(handle, turn, lane)
        self._connection = connection
        self._guard = _Guard(connection)
        self.session: Session | None = None

    def before_user_code(self) -> None:
        """Open a session in the transaction; each stretch of user code has its own."""
        self.session = Session(bind=self._connection, join_transaction_mode="create_savepoint")
        self._guard.watch(self.session)

    def after_user_code(self, *, raised: bool) -> None:
        """Flush the session, unless all is lost, and close it. Raises RuntimeError."""
        session, self.session = self.session, None
        assert session is not None
        tried = self._guard.end()
        try:
            if not raised and not tried:
                session.commit()  # flushes it, and releases its savepoint
        finally:
            with contextlib.suppress(SQLAlchemyError):  # of a transaction that was ended there is nothing to undo
                session.close()
        if tried and not raised:
            _refuse(*tried)

    def commit(self) -> None:
        """Commit, unless user code that did not return was left behind."""
        if self.is_open:
            self._connection.commit()


class AsyncEngineTransaction(AwaitedTransaction):
    """A transaction of an async engine."""

    def __init__(self, connection: "AsyncConnection", handle: Handle) -> None:
        super().__init__(handle)
        self._connection = connection
        assert connection.sync_connection is not None
        self._guard = _Guard(connection.sync_connection)
        self.session: AsyncSession | None = None

    def before_user_code(self) -> None:
        """Open a session in the transaction; each stretch of user code has its own."""
        from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415 - there is an async engine, so there is greenlet

        options: dict[str, Any] = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
        self.session = AsyncSession(bind=self._connection, **options)
        self._guard.watch(self.session.sync_session)

    async def after_user_code(self, *, raised: bool) -> None:
        """Flush the session, unless all is lost, and close it. Raises RuntimeError."""
        session, self.session = self.session, None
        assert session is not None
        tried = self._guard.end()
        try:
            if not raised and not tried:
                await session.commit()  # flushes it, and releases its savepoint
        finally:
            with contextlib.suppress(SQLAlchemyError):  # of a transaction that was ended there is nothing to undo
                await session.close()
        if tried and not raised:
            _refuse(*tried)
