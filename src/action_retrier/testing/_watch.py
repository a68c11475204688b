"""
What stands between an App and what it does, in a test: it says when a failpoint is reached.

It shadows methods on the App's own objects, and a few functions of modules, and takes the shadows away at the end.
"""

import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

from .. import _attempt
from .._statements import Op
from ..app import App
from ._failpoints import BY_OPERATION, STEPS, Step
from ._opening import watch_opening

Reach = Callable[[Step, str], None]
"""Called, in whichever thread, with a step and a moment; what it raises is what happens there."""

in_worker: contextvars.ContextVar[bool] = contextvars.ContextVar("action_retrier_testing_in_worker", default=False)
"""Whether this is an action, or a callback, that a worker has begun under a watch: its calls are no caller's."""


class Watch:
    """Tells of every failpoint that an App reaches, from `install` to `remove`."""

    def __init__(self, app: App, reach: Reach, check: Callable[[], None] = lambda: None, *, point: str = "") -> None:
        """
        Watch nothing yet.

        Args:
            check: Called wherever the database is used; raises for whom there is no database any more.
            point: The one that matters: a statement that would be a transaction of its own has one around it, as
                beside a neighbour or behind a pooler, if that is what it takes to have the point.
        """
        self._app = app
        self._reach = reach
        self._check = check
        self._point = point
        self._undo = contextlib.ExitStack()

    def install(self, *, only_database: bool = False) -> None:
        """Begin; with what comes to the database, or with everything."""
        database = self._app._database
        for name, make in (
            ("read", self._reading),
            ("read_sync", self._reading_sync),
            ("write", self._writing),
            ("write_sync", self._writing_sync),
            ("transaction", self._transaction),
            ("transaction_sync", self._transaction_sync),
        ):
            self.shadow(database, name, make)
        if only_database:
            return
        self.shadow(self._app._engine.mutations, "call", self._calling)
        self.shadow(_attempt, "execute", self._executing)
        for name, step in (("acquire", "lease"), ("renew", "heartbeat")):
            self.shadow(database.leases, name, self._around(STEPS[step]))
        watch_opening(
            getattr(database, "underneath", database), lambda moment: self._reach(STEPS["migrate"], moment), self.shadow
        )

    def remove(self) -> None:
        """End."""
        self._undo.close()

    def shadow(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put what *make* makes of an attribute in its place."""
        was_own = name in vars(owner)
        original = getattr(owner, name)
        setattr(owner, name, make(original))
        self._undo.callback(setattr, owner, name, original) if was_own else self._undo.callback(delattr, owner, name)

    # Operations.

    def _here(self, make: Callable[[], Op[Any]], written: list[Step]) -> Callable[[], Op[Any]]:
        """Have an operation watched as the caller's, though it is driven in a thread that knows no caller."""
        context = contextvars.copy_context()

        def op() -> Op[Any]:
            written.clear()
            return self.through(make(), written, context)

        return op

    def through(
        self, op: Op[Any], written: list[Step], context: contextvars.Context, *, commits: bool = True
    ) -> Op[Any]:
        """
        Run an operation, and say when it comes to a point.

        Args:
            written: Takes its step, if it has written something.
            context: Whose operation it is.
            commits: Whether its commit comes next; else there is an open transaction around it.
        """
        return _named_like(op, self._through(op, written, context, commits=commits))

    def _through(self, op: Op[Any], written: list[Step], context: contextvars.Context, *, commits: bool) -> Op[Any]:
        context.run(self._check)
        step = BY_OPERATION.get(_name_of(op))
        if step is None:
            return (yield from op)
        context.run(self._reach, step, "before")
        result = yield from (_apart(op) if self._point == f"{step.name}.before_commit" else op)
        context.run(self._check)
        if step.has_written(result):
            if commits:
                context.run(self._reach, step, "before_commit")
            written.append(step)
        return result

    def _after(self, written: list[Step]) -> None:
        for step in written:
            self._reach(step, "after_commit")
        self._check()

    def _reading(self, original: Any) -> Any:
        async def read(make: Callable[[], Op[Any]]) -> Any:
            self._check()
            return await original(make)

        return read

    def _reading_sync(self, original: Any) -> Any:
        def read_sync(make: Callable[[], Op[Any]]) -> Any:
            self._check()
            return original(make)

        return read_sync

    def _writing(self, original: Any) -> Any:
        async def write(make: Callable[[], Op[Any]], **options: Any) -> Any:
            self._check()
            written: list[Step] = []
            result = await original(self._here(make, written), **options)
            self._after(written)
            return result

        return write

    def _writing_sync(self, original: Any) -> Any:
        def write_sync(make: Callable[[], Op[Any]], **options: Any) -> Any:
            self._check()
            written: list[Step] = []
            result = original(self._here(make, written), **options)
            self._after(written)
            return result

        return write_sync

    # Transactions.

    def _transaction(self, original: Any) -> Any:
        @contextlib.asynccontextmanager
        async def transaction(*args: Any, **options: Any) -> AsyncIterator[Any]:
            self._check()
            async with original(*args, **options) as opened:
                watched = _Transaction(opened, self)
                yield watched
                self._before_commit(watched)
            self._after(watched._written)

        return transaction

    def _transaction_sync(self, original: Any) -> Any:
        @contextlib.contextmanager
        def transaction_sync(*args: Any, **options: Any) -> Iterator[Any]:
            self._check()
            with original(*args, **options) as opened:
                watched = _Transaction(opened, self)
                yield watched
                self._before_commit(watched)
            self._after(watched._written)

        return transaction_sync

    def _before_commit(self, transaction: "_Transaction") -> None:
        for step in transaction._written:
            self._reach(step, "before_commit")
        self._check()

    def _around(self, step: Step) -> Callable[[Any], Any]:
        def make(original: Any) -> Any:
            def watched(*args: Any) -> Any:
                self._reach(step, "before")
                result = original(*args)
                self._reach(step, "after")
                return result

            return watched

        return make

    # Functions of the user's.

    def _calling(self, original: Any) -> Any:
        async def call(transaction: Any, mutation: Any, arguments: Any) -> Any:
            step = STEPS["callback"]
            if not getattr(transaction, "_written", None):
                return await original(transaction, mutation, arguments)  # a mutation that is nobody's callback
            self._reach(step, "before")
            with _in_worker():
                result = await original(transaction, mutation, arguments)
            self._reach(step, "after")
            return result

        return call

    def _executing(self, original: Any) -> Any:
        async def execute(action: Any, args: Any, ctx: Any, threads: Any) -> Any:
            step = STEPS["action"]
            is_ours = self._app._engine.registry.actions.get(action.name) is action
            if is_ours:
                self._reach(step, "before")
            with _in_worker():
                outcome = await original(action, args, ctx, threads)
            if is_ours:
                self._reach(step, "after")
            return outcome

        return execute


@contextlib.contextmanager
def _in_worker() -> Iterator[None]:
    token = in_worker.set(True)
    try:
        yield
    finally:
        in_worker.reset(token)


class _Transaction:
    """An open transaction that says when its operations come to a point."""

    def __init__(self, transaction: Any, watch: Watch) -> None:
        self._transaction = transaction
        self._watch = watch
        self._written: list[Step] = []

    def __getattr__(self, name: str) -> Any:
        if name in {"connection", "session"}:
            self._watch._check()
        return getattr(self._transaction, name)

    async def run(self, op: Op[Any]) -> Any:
        written: list[Step] = []
        result = await self._transaction.run(self._through(op, written))
        self._written += written
        return result

    def run_sync(self, op: Op[Any]) -> Any:
        written: list[Step] = []
        result = self._transaction.run_sync(self._through(op, written))
        self._written += written
        return result

    def _through(self, op: Op[Any], written: list[Step]) -> Op[Any]:
        return self._watch.through(op, written, contextvars.copy_context(), commits=False)


def _name_of(op: Op[Any]) -> str:
    """Return the name of the function that has made *op*."""
    return str(getattr(op, "__name__", ""))


def _named_like(op: Op[Any], outer: Op[Any]) -> Op[Any]:
    """Give *outer* the name of *op*: another watch may be around this one."""
    outer.__name__ = _name_of(op)  # type: ignore[attr-defined]
    return outer


def _apart(op: Op[Any]) -> Op[Any]:
    """Run *op*, no statement of which says that it may be a transaction by itself."""
    try:
        statement = next(op)
        while True:
            statement = op.send((yield replace(statement, stands_alone=False)))
    except StopIteration as stop:
        return stop.value
