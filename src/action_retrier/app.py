"""`App`: one database, and the functions registered with it."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from . import config
from ._clock import Clock, SystemClock
from ._contexts import ActionCtx, AttemptSignals, SyncActionCtx
from ._functions import (
    DEFAULT_MUTATION_TIMEOUT_MS,
    Action,
    Bound,
    Mutation,
    check_exception_types,
    check_mutation_options,
    name_of,
    unbind,
)
from ._ids import new_run_id
from ._mutations import run_in_loop
from ._policy import PolicyOptions, check_count, check_name, check_namespace, check_number, check_options
from ._registry import Registry
from ._sessions import AppTransaction, AppWorker, run_to_end, run_until_signal
from ._signatures import Signature
from ._threads import DaemonThreads
from ._worker import Engine
from .drivers import Address, Database, Isolation, open_database
from .errors import UnknownFunction

P = ParamSpec("P")
R = TypeVar("R")
ExceptionTypes = type[BaseException] | Collection[type[BaseException]]

DEFAULT_CONCURRENCY = 100
DEFAULT_GRACE_MS = 30_000
_DAY_US = 86_400_000_000


class _ActionDecorator(Protocol):
    """What ``@app.action(...)`` returns."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[ActionCtx, P], R], /
    ) -> Action[Concatenate[ActionCtx, P], P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[SyncActionCtx, P], R], /
    ) -> Action[Concatenate[SyncActionCtx, P], P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Action[P, P, R]: ...


class App:
    """
    One database, and the functions registered with it.

    Args:
        database: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``postgresql://...``; a SQLAlchemy
            ``Engine`` or ``AsyncEngine``; or ``django:ALIAS``. None means
            ``$ACTION_RETRIER_DATABASE_URL``, else ``sqlite:///action_retrier.db``.
        namespace: Installations in one database that see nothing of each other.
        auto_migrate: Create or upgrade the schema on first use; otherwise it must be there.
        retention_days: Completed runs are removed after this.
        clock: Where time comes from; `action_retrier.testing.ManualClock` in tests.

    Raises:
        ValueError: The URL or the namespace cannot be used.

    Example:
        >>> app = App("sqlite:///doctest.db")
        >>> @app.action(name="billing:charge")
        ... async def charge(order_id: int) -> str:
        ...     return f"charged {order_id}"
        >>> charge
        <action 'billing:charge'>
    """

    def __init__(
        self,
        database: "Address | None" = None,
        *,
        namespace: str = "default",
        auto_migrate: bool = True,
        retention_days: float = 7,
        clock: Clock | None = None,
    ) -> None:
        config.configure_logging()
        check_namespace(namespace)
        check_number("retention_days", retention_days)
        clock = clock or SystemClock()
        given = database if database is not None else config.database_url()
        self._registry = Registry()
        self._engine = Engine.on(
            open_database(given, clock=clock, auto_migrate=auto_migrate),
            self._registry,
            clock,
            namespace=namespace,
            retention_us=round(retention_days * _DAY_US),
        )
        self._threads = DaemonThreads(4, "action-retrier-app", around=self._in_user_thread)

    @property
    def _database(self) -> Database:
        return self._engine.database

    def _in_user_thread(self) -> AbstractContextManager[None]:
        return self._database.in_user_thread()

    @property
    def namespace(self) -> str:
        """The namespace it works in."""
        return self._engine.namespace

    @property
    def location(self) -> str:
        """Where its database is, for people."""
        return self._database.location

    def __repr__(self) -> str:
        return f"<App on {self._database.location}, namespace {self.namespace!r}>"

    # Registering.

    @overload
    def action(
        self, function: Callable[Concatenate[ActionCtx, P], R], /
    ) -> Action[Concatenate[ActionCtx, P], P, R]: ...
    @overload
    def action(
        self, function: Callable[Concatenate[SyncActionCtx, P], R], /
    ) -> Action[Concatenate[SyncActionCtx, P], P, R]: ...
    @overload
    def action(self, function: Callable[P, R], /) -> Action[P, P, R]: ...
    @overload
    def action(
        self,
        /,
        *,
        name: str | None = None,
        aliases: Collection[str] = (),
        retry_on: ExceptionTypes | None = None,
        no_retry_on: ExceptionTypes = (),
        **policy: Unpack[PolicyOptions],
    ) -> _ActionDecorator: ...

    def action(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        aliases: Collection[str] = (),
        retry_on: ExceptionTypes | None = None,
        no_retry_on: ExceptionTypes = (),
        **policy: Unpack[PolicyOptions],
    ) -> Any:
        """
        Register a function with side effects, ``def`` or ``async def``, as an action.

        Args:
            name: Under which its runs are stored; ``module:qualname`` unless given.
            aliases: Older names whose runs it executes as well.
            retry_on: Only these exceptions are retried; None means all.
            no_retry_on: These are not retried, whatever *retry_on* says.
            policy: Options of its runs, see `RetryPolicy`.

        Raises:
            ValueError: The name is taken, the function cannot be found by a name, or an option is out of range.
            TypeError: An option is of the wrong type, or unknown.
        """
        check_options(policy, where="@app.action")
        only = None if retry_on is None else check_exception_types("retry_on", retry_on)
        never = check_exception_types("no_retry_on", no_retry_on)
        if isinstance(aliases, str):
            raise TypeError(f"aliases must be a list of names, not {aliases!r}")
        for alias in aliases:
            check_name("alias", alias)

        def register(function: Callable[..., Any]) -> Action[..., ..., Any]:
            action: Action[..., ..., Any] = Action(
                function,
                name_of(function, name, "an action"),
                aliases=aliases,
                retry_on=only,
                no_retry_on=never,
                options=policy,
            )
            self._registry.add_action(action)
            return action

        return register if function is None else register(function)

    @overload
    def mutation(self, function: Callable[P, R], /) -> Mutation[P, R]: ...
    @overload
    def mutation(
        self,
        /,
        *,
        name: str | None = None,
        isolation: Isolation = "serializable",
        timeout_ms: float = DEFAULT_MUTATION_TIMEOUT_MS,
    ) -> Callable[[Callable[P, R]], Mutation[P, R]]: ...

    def mutation(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        isolation: Isolation = "serializable",
        timeout_ms: float = DEFAULT_MUTATION_TIMEOUT_MS,
    ) -> Any:
        """
        Register a function that runs inside one database transaction.

        Args:
            name: Under which runs remember it; ``module:qualname`` unless given.
            isolation: ``serializable``, or ``read committed``, which lets callbacks share a transaction.
            timeout_ms: After this it is rolled back and counts as raising.

        Raises:
            ValueError: The name is taken, or the function cannot be found by a name.
        """
        check_mutation_options(isolation, timeout_ms)

        def register(function: Callable[..., Any]) -> Mutation[..., Any]:
            mutation: Mutation[..., Any] = Mutation(
                function, name_of(function, name, "a mutation"), isolation=isolation, timeout_ms=timeout_ms
            )
            check_colour(mutation.signature, self._database)
            self._registry.add_mutation(mutation)
            return mutation

        return register if function is None else register(function)

    # Opening and closing.

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._database.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._database.close)

    def __enter__(self) -> Self:
        self._database.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    # Mutations and actions, here and now.

    def transaction(self) -> AppTransaction:
        """
        Open a transaction: ``async with`` or ``with``; gives a `MutationCtx`.

        It commits on exit, and rolls back on error.
        """
        return AppTransaction(self._database)

    async def run_mutation(self, fn: Mutation[..., Any] | str, args: Mapping[str, Any] | None = None) -> Any:
        """
        Run a mutation in a transaction and return what it returns.

        A serialization failure or a deadlock is retried; the mutation's own exception rolls back and propagates.

        Raises:
            UnknownFunction, InvalidArguments
        """
        return await self._engine.mutations.run(fn, args)

    def run_mutation_sync(self, fn: Mutation[..., Any] | str, args: Mapping[str, Any] | None = None) -> Any:
        """Like `run_mutation`, and blocks."""
        return self._engine.mutations.run_sync(fn, args)

    async def run_action(self, fn: Action[..., ..., Any] | Bound | str, args: Mapping[str, Any] | None = None) -> Any:
        """
        Run an action once, here, with a real context; neither stored nor retried.

        Returns:
            What the action returns; what it raises propagates.

        Raises:
            UnknownFunction, InvalidArguments
        """
        action, arguments = self._prepare(fn, args)
        ctx = self._context(action)
        if action.signature.is_async:
            return await action.signature.call(ctx, arguments)
        return await self._threads.run(lambda: action.signature.call(ctx, arguments))

    def run_action_sync(self, fn: Action[..., ..., Any] | Bound | str, args: Mapping[str, Any] | None = None) -> Any:
        """Like `run_action`, and blocks."""
        action, arguments = self._prepare(fn, args)
        ctx = self._context(action)
        if action.signature.is_async:
            return run_in_loop(lambda: action.signature.call(ctx, arguments))
        return action.signature.call(ctx, arguments)

    def _prepare(self, fn: object, args: Mapping[str, Any] | None) -> tuple[Action[..., ..., Any], dict[str, Any]]:
        fn, args = unbind(fn, args)
        name, action = self._registry.find_action(fn, starts=False)
        if action is None:
            raise UnknownFunction(name=name, remedy="only what is registered here can run here")
        return action, action.signature.check_arguments(args)

    def _context(self, action: Action[..., ..., Any]) -> ActionCtx | SyncActionCtx:
        is_async = action.signature.is_async
        return (ActionCtx if is_async else SyncActionCtx)(
            run_id=new_run_id(self._engine.clock),
            attempt=1,
            max_attempts=1,
            database=self._database,
            signals=AttemptSignals(),
            mutate=self._engine.mutations.run if is_async else self._engine.mutations.run_sync,
        )

    # Workers.

    def worker(
        self,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        queues: Collection[str] | None = None,
        grace_ms: float = DEFAULT_GRACE_MS,
    ) -> AppWorker:
        """
        Run a worker in this process: ``async with`` or ``with``; it drains on exit.

        Args:
            concurrency: How many attempts it executes at once.
            queues: Only these; None means all.
            grace_ms: On exit, attempts that have begun may end for so long; then they are stopped.
        """
        check_count("concurrency", concurrency, at_least=1)
        check_number("grace_ms", grace_ms)
        return AppWorker(self._engine, concurrency, _check_queues(queues), grace_ms)

    async def run_worker(
        self,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        queues: Collection[str] | None = None,
        grace_ms: float = DEFAULT_GRACE_MS,
    ) -> None:
        """
        Run a worker until SIGTERM or SIGINT, then drain it; a second signal ends the grace time.

        The arguments are those of `worker`.
        """
        worker = self.worker(concurrency=concurrency, queues=queues, grace_ms=grace_ms).make()
        await run_until_signal(worker)

    def run_worker_sync(
        self,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        queues: Collection[str] | None = None,
        grace_ms: float = DEFAULT_GRACE_MS,
    ) -> None:
        """Like `run_worker`, and blocks."""
        worker = self.worker(concurrency=concurrency, queues=queues, grace_ms=grace_ms).make()
        run_to_end(run_until_signal(worker))


def _check_queues(queues: object) -> list[str] | None:
    if queues is None:
        return None
    if isinstance(queues, str) or not isinstance(queues, Collection):
        raise TypeError(f"queues must be a list of names, or None for all, not {queues!r}")
    for queue in queues:
        check_name("queue", queue)
    if not queues:
        raise ValueError("queues must name at least one queue, or be None for all")
    return list(queues)


def check_colour(signature: Signature, database: Database) -> None:
    """Raise ValueError for a mutation that *database* cannot serve."""
    colour = "async" if signature.is_async else "sync"
    if colour not in database.mutation_colours:
        other = "def" if colour == "async" else "async def"
        raise ValueError(f"mutation {signature.name!r} is of a colour that this database cannot serve: use {other}")
