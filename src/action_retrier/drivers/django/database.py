"""A database of Django's, by its alias, as the database of an App: mutations run inside ``atomic``."""

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.utils.connection import ConnectionDoesNotExist

from ..._clock import Clock
from ..._statements import drive
from .. import IDLE_S, Isolation, Threads, open_database
from ..handle import Control, Handle
from ..lent import Lanes, LentDatabase, Reached, protection
from ..lent_transaction import BlockingTransaction, refuse
from .address import url_of
from .handle import DjangoHandle

T = TypeVar("T")

_OF_A_HOOK = "_action_retrier_of_a_hook"
"""Marks an error, whosever it is, that an on_commit hook has raised: the commit has happened, and is not done again."""


class DjangoDatabase(LentDatabase):
    """
    The database behind an alias, looked up each time.

    Django's test runner changes what an alias leads to; nothing is asked of it before the first use.
    """

    mutation_colours = frozenset({"sync"})

    def __init__(self, url: str, *, clock: Clock, auto_migrate: bool) -> None:
        self._url = url
        self._alias = url.removeprefix("django:")
        if not self._alias:
            raise ValueError("database 'django:' names no alias: use django:default")
        self._clock = clock
        self._auto_migrate = auto_migrate
        self._lock = threading.Lock()
        self._underneath: Any = None
        self._address = ""
        self._lanes = Lanes("action-retrier-django", at_end=self._close_here)

    @property
    def url(self) -> str:
        """The alias."""
        return self._url

    @property
    def location(self) -> str:
        """The alias, and where that leads, if Django knows by now."""
        try:
            return f"{self._url} ({self.underneath.location})"
        except (ImproperlyConfigured, ValueError):
            return self._url

    @property
    def underneath(self) -> Reached:
        """The database of ours, where the alias leads now."""
        try:
            address = url_of(connections[self._alias])
        except ConnectionDoesNotExist as error:
            raise ValueError(f"database {self._url!r}: Django's DATABASES has no {self._alias!r}") from error
        with self._lock:
            if address != self._address:
                if self._underneath is not None:
                    self._underneath.close()
                self._underneath = open_database(address, clock=self._clock, auto_migrate=self._auto_migrate)
                self._address = address
            reached: Reached = self._underneath
            return reached

    def close(self) -> None:
        """Let go of connections and threads of ours."""
        self._lanes.close()
        with self._lock:
            if self._underneath is not None:
                self._underneath.close()

    def _close_here(self) -> None:
        connections[self._alias].close()

    @contextlib.contextmanager
    def in_user_thread(self) -> Iterator[None]:
        """Do for user code in a thread of ours what Django does around a request: see to stale connections."""
        _close_old_connections()
        try:
            yield
        finally:
            _close_old_connections()

    def is_transient(self, error: BaseException) -> bool:
        """Tell whether the transaction that *error* has ended may well succeed when it is done again."""
        return not hasattr(error, _OF_A_HOOK) and super().is_transient(error)

    @contextlib.asynccontextmanager
    async def transaction(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AsyncIterator["DjangoTransaction"]:
        """Open an atomic block in a thread of its own: commit on exit, rollback on error."""
        async with self._lanes.entered(lambda lane: self._opened(isolation, idle_s, lane)) as opened:
            yield opened

    @contextlib.contextmanager
    def transaction_sync(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> Iterator["DjangoTransaction"]:
        """
        Open an atomic block in this thread: commit on exit, rollback on error.

        It is a block of the one that is open here, if there is one, as in a TestCase.
        """
        with self._opened(isolation, idle_s, _HERE) as opened:
            yield opened

    @contextlib.contextmanager
    def _opened(self, isolation: Isolation, idle_s: float, threads: Threads) -> Iterator["DjangoTransaction"]:
        self.open()
        connection = connections[self._alias]
        is_inner = connection.in_atomic_block
        if not is_inner:
            connection.close_if_unusable_or_obsolete()
        opened: DjangoTransaction | None = None
        committed: list[bool] = []
        try:
            with contextlib.ExitStack() as turn:
                if not is_inner:
                    turn.enter_context(self.underneath.turn_to_write())
                with transaction.atomic(using=self._alias):
                    if not is_inner:
                        transaction.on_commit(lambda: committed.append(True), using=self._alias)
                    handle = DjangoHandle(connection, self._find_raw, writes=True).unwrap()
                    if connection.vendor == "postgresql" and not is_inner:
                        handle.execute(Control(f"SET TRANSACTION ISOLATION LEVEL {isolation.upper()}"))
                        handle.execute(Control(protection(idle_s)))
                    handle.open()
                    with handle.translated():
                        drive(handle.begin(), handle.execute)
                    opened = DjangoTransaction(connection, handle, turn, threads)
                    try:
                        yield opened
                    finally:
                        opened.is_open = False
        except BaseException as error:
            if committed:
                setattr(error, _OF_A_HOOK, True)
            raise
        finally:
            if opened is not None and opened.is_abandoned:
                connection.close()
            elif not is_inner:
                connection.close_if_unusable_or_obsolete()
        if not is_inner:
            self.committed()

    def _find_raw(self, driver: object) -> Handle | None:
        found = self._underneath.executor(driver, writes=True)
        return found if isinstance(found, Handle) else None


class DjangoTransaction(BlockingTransaction):
    """An atomic block."""

    def __init__(self, connection: Any, handle: Handle, turn: contextlib.ExitStack, threads: Threads) -> None:
        super().__init__(handle, turn, threads)
        self._connection = connection

    def before_user_code(self) -> None:
        """Do nothing: the models are the user's own."""

    def after_user_code(self, *, raised: bool) -> None:
        """Raise RuntimeError if the block would be rolled back without a word."""
        if self._connection.needs_rollback and not raised:
            refuse("rolled back (by set_rollback, or in an atomic block without a savepoint)")

    @contextlib.contextmanager
    def savepoint_sync(self) -> Iterator[None]:
        """Undo what happens inside if it raises; Django forgets the on_commit hooks of what is undone."""
        with transaction.atomic(using=self._connection.alias):
            yield


class _Here:
    """This very thread, which alone has the connection."""

    async def run(self, call: Callable[[], T]) -> T:
        """Never called: what has this thread is blocking code."""
        raise NotImplementedError  # pragma: no cover - never called

    def submit(self, task: Callable[[], None]) -> None:
        """Do it."""
        task()


_HERE = _Here()


def _close_old_connections() -> None:
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()
