"""
What stands between an App and what it does, in a test: it says when a failpoint is reached.

It shadows methods on the App's own objects, and a few functions of modules, and takes the shadows away at the end.
"""

import contextlib
import contextvars
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

from .. import _attempt
from .._statements import Op
from ..app import App
from ._failpoints import BY_OPERATION, STEPS, Step

Reach = Callable[[Step, str], None]
"""Called, in whichever thread, with a step and a moment; what it raises is what happens there."""


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
        self._watch_opening(getattr(database, "underneath", database))

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
            context.run(self._check)
            inner = make()
            return _named_like(inner, self._through(inner, written, context))

        return op

    def _through(self, op: Op[Any], written: list[Step], context: contextvars.Context) -> Op[Any]:
        """Run an operation, and say when it comes to a point; once it has written something, note its step."""
        written.clear()
        step = BY_OPERATION.get(_name_of(op))
        if step is None:
            return (yield from op)
        context.run(self._reach, step, "before")
        result = yield from (_apart(op) if self._point == f"{step.name}.before_commit" else op)
        context.run(self._check)
        if step.has_written(result):
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
            result = await original(transaction, mutation, arguments)
            self._reach(step, "after")
            return result

        return call

    def _executing(self, original: Any) -> Any:
        async def execute(action: Any, args: Any, ctx: Any, threads: Any) -> Any:
            if self._app._engine.registry.actions.get(action.name) is not action:
                return await original(action, args, ctx, threads)
            step = STEPS["action"]
            self._reach(step, "before")
            outcome = await original(action, args, ctx, threads)
            self._reach(step, "after")
            return outcome

        return execute

    # Opening.

    def _watch_opening(self, database: Any) -> None:
        module = sys.modules[type(database).__module__]
        step = STEPS["migrate"]
        commits_itself = "postgres" in module.__name__

        def migrating(original: Any) -> Any:
            def migrate(connection: Any, *schema: str) -> None:
                self._reach(step, "before")
                original(_Statements(connection, lambda moment: self._reach(step, moment)), *schema)
                if not commits_itself:
                    self._reach(step, "before_commit")

            return migrate

        def reading(original: Any) -> Any:
            def read_meta(*args: Any) -> Any:
                self._reach(step, "after_commit")  # what follows in any case
                return original(*args)

            return read_meta

        self.shadow(module, "migrate", migrating)
        self.shadow(module, "read_meta", reading)


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
        result = await self._transaction.run(_named_like(op, self._in(op, written)))
        self._written += written
        return result

    def run_sync(self, op: Op[Any]) -> Any:
        written: list[Step] = []
        result = self._transaction.run_sync(_named_like(op, self._in(op, written)))
        self._written += written
        return result

    def _in(self, op: Op[Any], written: list[Step]) -> Op[Any]:
        """As `Watch._through`, but that the commit comes later."""
        self._watch._check()
        step = BY_OPERATION.get(_name_of(op))
        if step is not None:
            self._watch._reach(step, "before")
        result = yield from op
        self._watch._check()
        if step is not None and step.has_written(result):
            written.append(step)
        return result


class _Statements:
    """A connection that says which statements a migration comes to."""

    def __init__(self, connection: Any, reach: Callable[[str], None]) -> None:
        self._connection = connection
        self._reach = reach

    def execute(self, *args: Any) -> Any:
        self._reach("before_commit" if args == ("COMMIT",) else "statement")
        return self._connection.execute(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


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
