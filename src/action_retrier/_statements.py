"""
Operations on storage, free of dialect and colour.

An operation is a generator: it yields statements and receives their rows. It is written once and
runs on either database, sync or async, also inside the caller's own transaction. It never
catches a database's errors: expected conflicts are written in SQL (``ON CONFLICT``, fences) and
come back as rows, or as none.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")
Row = Mapping[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Statement:
    """
    One file of ``_sql/{dialect}/`` and its parameters; the driver adds ``now``.

    Attributes:
        rows: What it is done for. A file that takes ``:rows`` has them at once, as JSON; another is sent for one after
            the other, takes their fields, and finds those that it has written.
        is_last: Its operation sends no other one after it, and raises nothing, whatever the rows are.
        stands_alone: It may be a transaction of its own, like all that its operation sends after it, and be done again
            when nobody knows whether it was done.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    is_last: bool = False
    stands_alone: bool = False


Op = Generator[Statement, Rows, T]


def drive(op: Op[T], execute: Callable[[Statement], Rows], first: Statement | None = None) -> T:
    """Run *op* to its result, one statement at a time; *first* is one that it has yielded before."""
    try:
        statement = first or next(op)
        while True:
            statement = op.send(execute(statement))
    except StopIteration as stop:
        return cast("T", stop.value)


def finished(op: Op[T], rows: Rows) -> T:
    """Return the result of *op*, whose last statement has found *rows*."""
    try:
        op.send(rows)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("it has sent something after what it called its last statement")


def resumed(op: Op[T], statement: Statement) -> Op[T]:
    """Go on with *op* within another one, from a *statement* that it has yielded."""
    try:
        while True:
            rows = yield statement
            statement = op.send(rows)
    except StopIteration as stop:
        return cast("T", stop.value)


async def adrive(op: Op[T], execute: Callable[[Statement], Awaitable[Rows]]) -> T:
    """Run *op* to its result, one statement at a time."""
    try:
        statement = next(op)
        while True:
            statement = op.send(await execute(statement))
    except StopIteration as stop:
        return cast("T", stop.value)
