"""
The protocols: all that differs between databases.

What is above this floor knows these and never a concrete driver; `open_database` is the only
place that chooses one. A difference between databases is a capability here with a conformance
test, never an ``if`` on the dialect above.
"""

import difflib
import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from .._clock import Clock
from .._statements import Op, Rows

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")
Address: TypeAlias = "str | Engine | AsyncEngine"
"""What leads to a database: a URL, or an engine of SQLAlchemy's."""
Colour = Literal["async", "sync"]
Isolation = Literal["serializable", "read committed"]
LENT = (
    "the transaction is ended by whoever lent it, together with all else that belongs to it, and by nobody else. "
    "Return (or leave the block) to commit, raise to roll back"
)
"""What user code is told that ends, or tries to end, the transaction that it holds."""
IDLE_S = 10.0
"""How long user code may leave a transaction idle, unless it says how long it needs."""


class Threads(Protocol):
    """Threads that do what they are given."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run *call* in one of them."""

    def submit(self, task: Callable[[], None]) -> None:
        """Have one of them do *task*, which must not raise."""


class Transaction(Protocol):
    """A transaction of ours that is open, on the connection that user code receives."""

    def connection(self, colour: Colour) -> Any:
        """Return the driver's own connection, in that colour if it has several, as ``MutationCtx.db``."""

    @property
    def threads(self) -> "Threads | None":
        """Where blocking user code has to run in it; None: in any thread."""

    @property
    def is_open(self) -> bool:
        """False once it has ended, one way or the other."""

    async def run(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""

    def run_sync(self, op: Op[T]) -> T:
        """Run *op* in this transaction."""

    def user_code(self) -> AbstractAsyncContextManager[None]:
        """
        Guard a stretch in which user code holds the connection.

        Raises:
            RuntimeError: On leaving, if the code committed or rolled back, or tried to.
        """

    def user_code_sync(self) -> AbstractContextManager[None]:
        """Guard a stretch in which user code holds the connection."""

    def savepoint(self, *, op_first: bool = False) -> AbstractAsyncContextManager[None]:
        """
        Undo what happens inside if it raises, and nothing else.

        Args:
            op_first: An operation of ours comes first inside, and one of ours, another savepoint or the transaction's
                end comes next after it: then it costs no exchange of its own where exchanges cost something.
        """

    def savepoint_sync(self) -> AbstractContextManager[None]:
        """Undo what happens inside if it raises, and nothing else."""

    def abandon(self) -> None:
        """Roll back and take the connection away from user code that does not return."""


class Subscription(Protocol):
    """A wish to hear of commits."""

    active: bool
    """While False nothing is looked for on its behalf, which costs nothing."""
    was_told: bool
    """Whether another process has started something, as far as can be told; whoever has read it clears it."""
    asks_after_vain_s: float
    """For how long whoever was told, and claimed in vain, asks what is due before the next claim."""

    async def tune(self, worker: str, *, busy: bool) -> float | None:
        """
        Have other processes tell of what they start, where that costs them something and *worker* is not busy.

        To be called before the last look at what is due.

        Returns:
            After how many seconds to look again although nobody has told; None leaves it to the caller.
        """

    def close(self) -> None:
        """Hear no more."""


class Changes(Protocol):
    """Tells when somebody has committed something. A hint: whoever needs the truth polls."""

    def subscribe(self, call: Callable[[], None]) -> Subscription:
        """Make *call*, from any thread, after commits of this process and of others."""


class Leases(Protocol):
    """The right of worker processes to their runs, and how its end is noticed."""

    def acquire(self, worker: str) -> None:
        """Take the lease of a fresh worker id; before its row is written."""

    def announce(self, worker: str) -> None:
        """Tell the others by what they may know its end; once its row has been written."""

    def renew(self, worker: str) -> bool:
        """Prolong it. False: it had ended before, and others may have recovered the runs."""

    def is_fresh(self, worker: str) -> bool:
        """Tell, without asking anybody, whether it was prolonged so lately that nobody can have taken over its runs."""

    def release(self, worker: str, *, signed_off: bool = True) -> None:
        """End it; after its row has been deleted, or else others have to notice that it has ended."""

    async def dead(self, workers: Iterable[str]) -> list[str]:
        """Return those of *workers* whose lease has ended, as far as this process may judge that."""

    def look_again_s(self, *, alone: bool) -> float:
        """
        Return after how long deaths are to be looked for again, as far as that depends on how they are noticed.

        Args:
            alone: At the last look there was nobody who could have died.
        """

    def alive(self, workers: Rows) -> Rows:
        """Of the workers' rows, return those of the living, as far as can be told without asking."""

    def is_still_dead(self, worker: str) -> Op[bool]:
        """Look again, in the transaction that recovers the runs of a worker that was found dead."""

    async def silent(self, workers: Iterable[str]) -> list[str]:
        """Return those of *workers* that have given no sign for one lease, for people to look into."""

    def left_behind(self) -> list[str]:
        """Return whose traces beside the database look abandoned: they may have no row that would tell of them."""

    def forget(self, worker: str) -> None:
        """Remove what a recovered worker has left beside the database."""


class Executor(Protocol):
    """A handle of the user's, checked: runs operations in the transaction that it holds."""

    colours: frozenset[Colour]
    """In which it can be used."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open on it."""

    async def run(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""

    def run_sync(self, op: Op[T]) -> T:
        """Run *op*; a write that raises leaves nothing behind."""


class Database(Protocol):
    """One database and one namespace's way to it."""

    @property
    def url(self) -> str:
        """As given, with the password masked."""

    mutation_colours: frozenset[Colour]
    """Which colours of mutations it can serve."""

    @property
    def works_beside(self) -> bool:
        """Whether it works while this process does something else, and not in its place."""

    @property
    def location(self) -> str:
        """Where it is, for people."""

    @property
    def turn(self) -> Hashable:
        """What a transaction waits for, if another one of the same task or thread has it: they would wait for ever."""

    @property
    def installation(self) -> str:
        """The id by which handles on this database are told from those on others; opens it."""

    @property
    def changes(self) -> Changes:
        """How commits are noticed."""

    @property
    def leases(self) -> Leases:
        """How workers' rights are kept."""

    @property
    def is_open(self) -> bool:
        """Whether it has been opened in this process, and not been closed since."""

    def exists(self) -> bool:
        """Tell whether there is such a database, without making one."""

    def open(self) -> None:
        """Connect, and create or upgrade the schema; does nothing if that has been done."""

    def migrate(self) -> int:
        """Create or upgrade the schema, even where `open` only checks it; return its version."""

    def schema_sql(self) -> str:
        """Return a script that creates what `migrate` creates. Touches nothing."""

    def close(self) -> None:
        """Let go of every connection and thread."""

    async def read(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""

    def read_sync(self, make: Callable[[], Op[T]]) -> T:
        """Run an operation that writes nothing."""

    async def write(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:
        """
        Run an operation in a transaction of its own, together with its neighbours.

        Args:
            make: Makes the operation; more than once if the transaction is repeated.
            patience_s: Give up if it has not begun by then; None waits for ever.
            apart: It may have to wait for a user's open transaction: nobody else should wait with it.
        """

    def write_sync(self, make: Callable[[], Op[T]], *, patience_s: float | None = None, apart: bool = False) -> T:
        """Run an operation in a transaction of its own, together with its neighbours."""

    def transaction(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AbstractAsyncContextManager[Transaction]:
        """
        Open a transaction for user code: commit on exit, rollback on error.

        Args:
            isolation: It is isolated at least so well.
            idle_s: It may be ended when it has been left idle for longer: its client may be gone.
        """

    def transaction_sync(
        self, isolation: Isolation = "read committed", *, idle_s: float = IDLE_S
    ) -> AbstractContextManager[Transaction]:
        """Open a transaction for user code: commit on exit, rollback on error."""

    def is_transient(self, error: BaseException) -> bool:
        """Tell whether the transaction that *error* has ended may well succeed when it is done again."""

    def in_user_thread(self) -> AbstractContextManager[None]:
        """See, around user code in a thread of ours, to what it has opened there for the thread."""

    def executor(self, handle: Any, *, writes: bool) -> Executor | None:
        """
        Return what runs operations through the user's own *handle*; None if it is no such thing.

        Raises:
            InvalidContext: It cannot hold the transaction, with the remedy.
        """

    def diagnose(self) -> Sequence[tuple[str, Literal["ok", "warning", "error"], str]]:
        """Check the database: (what, verdict, what was found and what to do)."""


def open_database(url: Address, *, clock: Clock, auto_migrate: bool) -> Database:
    """
    Return the database that *url* names, or that a SQLAlchemy engine leads to; nothing is opened yet.

    Raises:
        ValueError: It is no database that this library can use.
    """
    if not isinstance(url, str):
        return _open_engine(url, clock=clock, auto_migrate=auto_migrate)
    if url.startswith("django:"):
        try:
            from .django.database import DjangoDatabase  # noqa: PLC0415 - only the driver that is used is imported
        except ImportError as error:
            raise ValueError(f"database {url!r} needs Django: pip install 'action-retrier[django]'") from error
        return DjangoDatabase(url, clock=clock, auto_migrate=auto_migrate)
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite":
        from .sqlite import SqliteDatabase  # noqa: PLC0415 - only the driver that is used is imported

        return SqliteDatabase(url, rest, clock=clock, auto_migrate=auto_migrate)
    if separator and scheme in {"postgresql", "postgres"}:
        try:
            from .postgres import PostgresDatabase  # noqa: PLC0415 - only the driver that is used is imported
        except ImportError as error:
            raise ValueError(
                f"database {mask_password(url)!r} needs psycopg: pip install 'action-retrier[postgres]'"
            ) from error
        return PostgresDatabase(url, clock=clock, auto_migrate=auto_migrate)
    raise ValueError(f"database {mask_password(url)!r} is not a URL that this library knows: {_advice(url)}")


def _open_engine(engine: object, *, clock: Clock, auto_migrate: bool) -> Database:
    kinds = {base.__name__ for base in type(engine).__mro__ if base.__module__.startswith("sqlalchemy.")}
    if "AsyncEngine" in kinds:
        from .sqlalchemy.engine import AsyncEngineDatabase  # noqa: PLC0415 - only the driver that is used is imported

        return AsyncEngineDatabase(engine, clock=clock, auto_migrate=auto_migrate)  # type: ignore[arg-type] # known by its name
    if "Engine" in kinds:
        from .sqlalchemy.engine import EngineDatabase  # noqa: PLC0415 - as above

        return EngineDatabase(engine, clock=clock, auto_migrate=auto_migrate)  # type: ignore[arg-type] # known by its name
    meant = ': did you mean f"sqlite:///{path}"?' if isinstance(engine, os.PathLike) else ""
    raise ValueError(
        f"database must be a URL such as sqlite:///app.db, or a SQLAlchemy engine, not {type(engine).__name__}{meant}"
    )


def _advice(url: str) -> str:
    scheme, plus, driver = url.partition(":")[0].partition("+")
    if plus and scheme in {"postgresql", "postgres", "sqlite"} and "://" in url:
        return f"pass SQLAlchemy's engine itself, App(engine), or a URL without +{driver}"
    if (word := _SCHEME.match(url)) and (meant := difflib.get_close_matches(word[1].lower(), _SCHEMES, n=1)):
        return f"did you mean {_SCHEMES[meant[0]]}?"
    if _BARE_PATH.fullmatch(url):
        return f"did you mean sqlite:///{url}?"
    return "use sqlite:///relative.db, sqlite:////absolute.db or postgresql://..."


_SCHEME = re.compile(r"(\w+)(?::|//)")
_SCHEMES = {
    "postgresql": "postgresql://...",
    "postgres": "postgresql://...",
    "sqlite": "sqlite:///relative.db or sqlite:////absolute.db",
}
_BARE_PATH = re.compile(r"[^:@?#\0]*[^:@?#\0/]")  # where an @ stands, a secret may


def mask_password(url: str) -> str:
    """Return *url* with its password, if it has one, replaced; rather too much of it than too little."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        # Not a URL: what stands before an @ may still be a secret.
        return url if "@" not in url else "***@" + url.rpartition("@")[2]
    # The last @, wherever it is: a password that was not encoded may have slashes in it.
    before, mark, query = rest.partition("?")
    if "@" not in before:
        before, mark, query = rest, "", ""
    credentials, at, host = before.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        before = f"{user}{colon}{'***' if colon else ''}@{host}"
    return _PASSWORD.sub(r"\1***", f"{scheme}://{before}{mark}{query}")


_PASSWORD = re.compile(r"([?&#;][^=&#;]*password[^=&#;]*=)[^&#;]*", re.IGNORECASE)
