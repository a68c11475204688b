"""Find the transaction that a call's ``ctx`` holds."""

import functools
import inspect
from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._contexts import ActionCtx, MutationCtx, SyncActionCtx
from ._functions import Action, Bound, Mutation
from ._open_transactions import refuse_inside_transaction
from ._statements import Op
from .errors import InvalidContext

if TYPE_CHECKING:
    from .drivers import Colour, Database

T = TypeVar("T")


class Target(Protocol):
    """A transaction of the caller's in which an operation runs."""

    async def run(self, op: Op[T]) -> T:
        """Run *op* there."""

    def run_sync(self, op: Op[T]) -> T:
        """Run *op* there."""


class Targets:
    """Finds the transactions of the calls to one app."""

    def __init__(self, app: object, database: "Database") -> None:
        self._app = app
        self._database = database

    def find(self, ctx: object, colour: "Colour", *, writes: bool) -> Target | None:
        """
        Return the transaction that *ctx* holds; None for one of our own.

        Raises:
            InvalidContext: It holds none that could serve, with the remedy.
        """
        if ctx is self._app:
            refuse_inside_transaction(self._database.turn)
            return None
        if isinstance(ctx, ActionCtx | SyncActionCtx):
            self._check_home(ctx._database)  # noqa: SLF001
            _check_colour("async" if isinstance(ctx, ActionCtx) else "sync", colour, ctx)
            refuse_inside_transaction(self._database.turn)
            return None
        if isinstance(ctx, MutationCtx):
            self._check_home(ctx._database)  # noqa: SLF001
            _check_colour(ctx._colour, colour, ctx)  # noqa: SLF001
            _ = ctx.db  # raises once the transaction has ended
            return ctx._transaction  # noqa: SLF001
        executor = self._database.executor(ctx, writes=writes)
        if executor is None and isinstance(ctx, type(self._app)):
            raise InvalidContext(
                problem=f"ctx is another App, {ctx!r}", remedy=f"pass the App of this retrier, {self._app!r}"
            )
        if executor is None:
            raise InvalidContext(
                problem=f"ctx is {_describe(ctx)}, which holds no transaction on {self._database.location}",
                remedy="pass the app, the ctx of an action or a mutation, or an open connection to that database",
            )
        if colour not in executor.colours:
            _check_colour("sync" if colour == "async" else "async", colour, ctx)
        return executor

    def _check_home(self, database: "Database") -> None:
        """Another App is fine, if it is on the same database."""
        if database.turn == self._database.turn:
            return  # and what its transaction makes others wait for, opening ours must not wait for
        if self._database.installation != database.installation:
            raise InvalidContext(
                problem="ctx belongs to an App on another database", remedy="use the retrier of that App"
            )

    def refuse_to_wait(self, ctx: object, colour: "Colour") -> None:
        """Raise `InvalidContext` if *ctx* has a transaction open."""
        target = self.find(ctx, colour, writes=False)
        if isinstance(ctx, MutationCtx) or getattr(target, "in_transaction", False):
            raise InvalidContext(
                problem="wait was called inside a transaction",
                remedy="commit first, then wait with the app as ctx: before that the run does not start",
            )


def _check_colour(has: "Colour", wanted: "Colour", ctx: object) -> None:
    if has != wanted:
        retrier = "ActionRetrier" if has == "async" else "SyncActionRetrier"
        raise InvalidContext(
            problem=f"ctx is {_describe(ctx)} of the other colour ({has})", remedy=f"use {retrier} with it"
        )


def asks_for_ctx(retrier: type[T]) -> type[T]:
    """Have every public method look at its first argument before all others, which a forgotten ctx makes wrong too."""
    for name, method in list(vars(retrier).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(retrier, name, _asking(method))
    return retrier


def _asking(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def call_async(self: object, *args: Any, **kwargs: Any) -> Any:
            _refuse_what_is_no_ctx(*args[:1])
            return await method(self, *args, **kwargs)

        return call_async

    @functools.wraps(method)
    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        _refuse_what_is_no_ctx(*args[:1])
        return method(self, *args, **kwargs)

    return call


def _refuse_what_is_no_ctx(ctx: object = None) -> None:
    given = ctx.action if isinstance(ctx, Bound) else ctx
    if isinstance(given, Action | Mutation):
        what = f"the {given.kind} {given.name!r}"
    elif isinstance(given, str | int | float | date | list | tuple | Mapping):
        what = f"{_describe(given)}: {given!r:.60}" if isinstance(given, str) else _describe(given)
    else:
        return
    raise InvalidContext(problem=f"ctx is {what}", remedy="pass app or your session first, then the action")


def _describe(ctx: object) -> str:
    name = type(ctx).__qualname__
    article = "an" if name[:1] in "AEIOUaeiou" else "a"
    return f"{article} {name}"
