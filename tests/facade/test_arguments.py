"""What is passed to an action, and what comes back: conversion by type hints, refusals, sizes, bind, names."""

import enum
import importlib
import math
import re
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, PlainValidator
from typing_extensions import TypedDict

from action_retrier import (
    ActionCtx,
    App,
    Call,
    Canceled,
    Failed,
    InvalidArguments,
    MutationCtx,
    PayloadTooLarge,
    RetrierError,
    Success,
    SyncActionCtx,
    UnknownFunction,
)

from ..stores import whatever_the_database

MIB = 1024 * 1024
YEAR_MS = 365 * 24 * 3_600_000
ORDER_UUID = UUID("0d2c2a9a-92f4-4e4a-8a05-4f1a0f8f1f10")
NOON = datetime(2031, 5, 17, 12, 0, 0, 123456, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Item(BaseModel):
    sku: str
    count: int = Field(gt=0)


class Order(BaseModel):
    id: UUID
    placed_at: datetime
    items: list[Item]


@dataclass
class Address:
    street: str
    tags: list[str] = field(default_factory=list)


class Size(TypedDict):
    width: int
    height: int


class Point(NamedTuple):
    x: int
    y: int


class NoNumber(enum.Enum):
    NAN = math.nan


class Reading(BaseModel):
    value: float


ORDER = Order(id=ORDER_UUID, placed_at=NOON, items=[Item(sku="a", count=2)])

CONVERSIONS = [
    (int, 7, 7),
    (int, 2**70, 2**70),
    (int, -(2**63), -(2**63)),
    (float, 0.1, 0.1),
    (float, 1e300, 1e300),
    (float, 3, 3.0),
    (bool, False, False),
    (str, "", ""),
    (str, "ß€😀 \n\t\x01", "ß€😀 \n\t\x01"),
    (None, None, None),
    (int | None, None, None),
    (datetime, NOON, NOON),
    (datetime, NOON.astimezone(timezone(timedelta(hours=5, minutes=30))), NOON),
    (datetime, "2031-05-17T12:00:00.123456Z", NOON),
    (date, date(2031, 5, 17), date(2031, 5, 17)),
    (timedelta, timedelta(days=1, microseconds=5), timedelta(days=1, microseconds=5)),
    (UUID, ORDER_UUID, ORDER_UUID),
    (UUID, str(ORDER_UUID), ORDER_UUID),
    (Colour, Colour.GREEN, Colour.GREEN),
    (Colour, "green", Colour.GREEN),
    (Level, Level.HIGH, Level.HIGH),
    (Literal["a", "b"], "b", "b"),
    (Decimal, Decimal("1.10"), Decimal("1.10")),
    (Decimal, Decimal("12345678901234567890.123456789"), Decimal("12345678901234567890.123456789")),
    (Path, Path("a/b"), Path("a/b")),
    (bytes, b"plain", b"plain"),
    (Item, Item(sku="a", count=1), Item(sku="a", count=1)),
    (Item, {"sku": "a", "count": 1}, Item(sku="a", count=1)),
    (Order, ORDER, ORDER),
    (Address, Address("Main St", ["x"]), Address("Main St", ["x"])),
    (Address, {"street": "Main St"}, Address("Main St", [])),
    (Size, {"width": 1, "height": 2}, {"width": 1, "height": 2}),
    (Point, Point(1, 2), Point(1, 2)),
    (list[int], [1, 2], [1, 2]),
    (list[Item], [Item(sku="a", count=1)], [Item(sku="a", count=1)]),
    (dict[str, Colour], {"x": Colour.RED}, {"x": Colour.RED}),
    (dict[int, str], {1: "one"}, {1: "one"}),
    (tuple[int, str], (1, "a"), (1, "a")),
    (set[int], {1, 2}, {1, 2}),
    (Item | Address, Address("Main St"), Address("Main St")),
    (Annotated[int, Field(ge=1)], 1, 1),
    (Any, {"a": [1, 2.5, "x", None, True]}, {"a": [1, 2.5, "x", None, True]}),
]
ANY_JSON: list[Any] = [
    {"deep": [{"er": [1, "2", None, 3.5, False]}]},
    [2**70, -(2**63), 0.1, 1e300],
    "ß€😀 \n\t\x01",
]
IDS = [f"{number}-{hint}" for number, (hint, _, _) in enumerate(CONVERSIONS)]


async def delivered(api: Any, action: Any, args: Any, received: list[Any]) -> Any:
    """Run *action* once; what it received."""
    run_id = await api.run(api.app, action, args, max_failures=0)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert isinstance(result, Success), result
    assert len(received) == 1
    return received[0]


# -- conversion --------------------------------------------------------------------------------------------------------


@whatever_the_database
@pytest.mark.parametrize(("hint", "passed", "expected"), CONVERSIONS, ids=IDS)
async def test_an_argument_reaches_the_action_as_its_type_hint_says(api, hint, passed, expected):
    """Encoded by their type hints as pydantic's JSON mode does, and converted back for the call."""
    received: list[Any] = []

    def action(value):
        received.append(value)

    action.__annotations__ = {"value": hint, "return": None}
    receive = api.app.action(name="receive")(action)

    value = await delivered(api, receive, {"value": passed}, received)
    assert value == expected
    assert type(value) is type(expected)


async def test_several_arguments_are_passed_by_name(api):
    """`args`: a mapping, by name."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(a: int, b: str = "b", *, c: bool = True) -> None:
        received.append((a, b, c))

    assert await delivered(api, receive, {"c": False, "a": 1}, received) == (1, "b", False)


async def test_a_default_fills_what_is_not_passed(api):
    """A missing argument is wrong only where there is no default."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(when: datetime | None = None, tags: tuple[str, ...] = ("x",)) -> None:
        received.append((when, tags))

    assert await delivered(api, receive, None, received) == (None, ("x",))


@pytest.mark.parametrize("value", ANY_JSON, ids=str)
async def test_arguments_without_type_hints_are_passed_as_json(api, value):
    """Without a hint an argument is any JSON value."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(value) -> None:
        received.append(value)

    assert await delivered(api, receive, {"value": value}, received) == value


async def test_keyword_parameters_take_extra_arguments(api):
    """An extra argument is wrong only if the signature has no place for it."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(**rest: int) -> None:
        received.append(rest)

    assert await delivered(api, receive, {"a": 1, "b": 2}, received) == {"a": 1, "b": 2}


async def test_any_mapping_will_do_for_args(api):
    """`args`: a mapping."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(a: int) -> None:
        received.append(a)

    assert await delivered(api, receive, MappingProxyType({"a": 1}), received) == 1


async def test_changing_args_after_the_start_changes_nothing(api):
    """The run holds what was passed when `run` was called."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(values: list[int]) -> None:
        received.append(values)

    args = {"values": [1]}
    run_id = await api.run(api.app, receive, args)
    args["values"].append(2)
    async with api.worker() as worker:
        await api.result(worker, run_id)
    assert received == [[1]]


async def test_each_attempt_receives_fresh_arguments(api):
    """What an attempt does to its arguments is not seen by the next."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(values: list[int]) -> None:
        received.append(list(values))
        values.append(99)
        if len(received) == 1:
            raise ValueError

    run_id = await api.run(api.app, receive, {"values": [1]})
    async with api.worker() as worker:
        await api.result(worker, run_id)
    assert received == [[1], [1]]


async def test_hints_that_are_strings_are_understood(api, monkeypatch):
    """By type hints, also under `from __future__ import annotations`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    user = importlib.import_module("postponed")
    ship, shipped = api.app.action(user.ship), api.app.mutation(user.shipped)
    order = user.Order(id=7, placed_at=NOON)
    run_id = await api.run(api.app, ship, {"order": order}, on_complete=shipped, context=order, max_failures=0)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert result == Success(return_value={"id": 7, "placed_at": "2031-05-17T12:00:00.123456Z"})
    assert user.told.pop() == "success Order"


async def test_run_shows_the_arguments_as_json(api):
    """`Run` adds: ... args."""

    @api.app.action(name="receive")
    def receive(order: Order, colour: Colour) -> None: ...

    run = await api.get(api.app, await api.run(api.app, receive, {"order": ORDER, "colour": Colour.RED}))
    assert run.args == {
        "order": {
            "id": str(ORDER_UUID),
            "placed_at": "2031-05-17T12:00:00.123456Z",
            "items": [{"sku": "a", "count": 2}],
        },
        "colour": "red",
    }


# -- signatures that cannot be served --------------------------------------------------------------------------------


class Connection:
    """What JSON cannot carry."""


def context_with_another_name(context: ActionCtx, to: str) -> None: ...
def context_in_second_place(to: str, ctx: SyncActionCtx) -> None: ...
def context_that_may_be_missing(to: str, context: ActionCtx | None = None) -> None: ...


@whatever_the_database
@pytest.mark.parametrize(
    ("function", "found"),
    [
        (context_with_another_name, "parameter 'context' is an ActionCtx"),
        (context_in_second_place, "parameter 'ctx' is a SyncActionCtx"),
        (context_that_may_be_missing, "parameter 'context' is an ActionCtx"),
    ],
)
async def test_a_context_is_the_first_parameter_and_named_ctx(api, function, found):
    """A first parameter named `ctx` receives it; another one would be waited for among the arguments."""
    with pytest.raises(ValueError, match=f"{found}: the context must be the first parameter and be named ctx$"):
        api.app.action(function)


@whatever_the_database
async def test_the_context_of_a_mutation_is_looked_for_likewise(api):
    """It must not be taken for the callback's `context`, either."""

    def done(context: MutationCtx, result: Any) -> None: ...

    with pytest.raises(ValueError, match="parameter 'context' is a MutationCtx: the context must be the first"):
        api.app.mutation(name="done")(done)


def in_itself(to: str, connection: Connection) -> None: ...
def in_a_list(to: str, connection: list[Connection]) -> None: ...
def in_the_end(to: str) -> Connection: ...


@whatever_the_database
@pytest.mark.parametrize(
    ("function", "culprit"),
    [
        (in_itself, "parameter 'connection', annotated .*Connection"),
        (in_a_list, r"parameter 'connection', annotated list\[.*Connection\]"),
        (in_the_end, "its return value, annotated .*Connection"),
    ],
)
async def test_what_json_cannot_carry_is_named_when_it_is_registered(api, function, culprit):
    """The parameter, in one line, without advice that is for pydantic's models."""
    with pytest.raises(ValueError, match=f"JSON cannot carry {culprit}") as failure:
        api.app.action(function)
    assert not re.search(r"arbitrary_types_allowed|__get_pydantic_core_schema__|\n", str(failure.value))


# -- refusals ----------------------------------------------------------------------------------------------------------


@whatever_the_database
@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({}, "order_id"),
        (None, "order_id"),
        ({"order_id": "seven"}, "order_id"),
        ({"order_id": None}, "order_id"),
        ({"order_id": 7.5}, "order_id"),
        ({"order_id": [7]}, "order_id"),
        ({"order_id": 7, "oder": 1}, "oder"),
        ({"oder_id": 7}, "order_id"),
        ({"order_id": 7, "item": {"sku": "a", "count": 0}}, "item"),
        ({"order_id": 7, "item": {"sku": "a"}}, "item"),
        ({"order_id": 7, "ctx": 1}, "ctx"),
        ({"order_id": 7, 5: 1}, "5"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_when_run_is_called(api, args, names):
    """A wrong, missing or extra argument raises `InvalidArguments` there, nothing stored."""

    @api.app.action(name="charge")
    def charge(ctx: SyncActionCtx, order_id: int, item: Item | None = None) -> None: ...

    with pytest.raises(InvalidArguments, match=names):
        await api.run(api.app, charge, args)
    with pytest.raises(InvalidArguments, match=names):
        await api.run_after(api.app, 1_000, charge, args)
    with pytest.raises(InvalidArguments, match=names):
        await api.run_at(api.app, NOON, charge, args)

    async def run_many() -> None:
        await api.run_many(api.app, [Call(charge, {"order_id": 1}), Call(charge, args)])

    with pytest.raises(InvalidArguments, match=names):
        await run_many()
    assert await api.all_runs() == []


async def test_invalid_arguments_name_the_action(api):
    """Each error says what was wrong."""

    @api.app.action(name="charge.order")
    def charge(order_id: int) -> None: ...

    with pytest.raises(InvalidArguments, match=r"charge\.order"):
        await api.run(api.app, charge, {"order_id": "seven"})


@whatever_the_database
@pytest.mark.parametrize(
    "args", [[1], "order_id", 7, ("order_id", 7), {7}, object()], ids=lambda args: type(args).__name__
)
async def test_args_that_are_no_mapping_are_refused(api, args):
    """`args`: a mapping."""
    executed = []

    @api.app.action(name="charge")
    def charge(order_id: int = 1) -> None:
        executed.append(order_id)

    with pytest.raises((InvalidArguments, TypeError)):
        await api.run(api.app, charge, args)
    assert await api.all_runs() == []


def _circular() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@whatever_the_database
async def test_a_validator_that_recurses_too_deeply_refuses_the_arguments(api):
    """A validator is user code, and recursion is how one looks through a tree."""

    def look(value: Any) -> Any:
        return look(value)

    @api.app.action(name="work")
    def work(tree: Annotated[Any, PlainValidator(look)]) -> None: ...

    with pytest.raises(InvalidArguments, match="nested too deeply"):
        await api.run(api.app, work, {"tree": []})
    assert await api.all_runs() == []


NOT_JSON = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "nested nan": {"a": [1, {"b": math.nan}]},
    "NUL": "a\0b",
    "nested NUL": ["fine", {"x": "\0"}],
    "NUL in a key": {"a\0": 1},
    "lone surrogate": "a\ud800",
    "nested lone surrogate": [["\udfff"]],
    "lone surrogate in a key": {"\ud800": 1},
    "object": object(),
    "nested object": [object()],
    "function": print,
    "class": int,
    "circle": _circular(),
    "100,000 levels deep": _deep(100_000),
}
not_json = pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())


@whatever_the_database
@not_json
@pytest.mark.parametrize("how", ["with a hint", "without a hint", "by name only"])
async def test_a_value_that_json_cannot_carry_is_refused(api, value, how):
    """... or a value that JSON cannot carry, raises `InvalidArguments` there, nothing stored."""

    @api.app.action(name="hinted")
    def hinted(value: Any) -> None: ...

    @api.app.action(name="unhinted")
    def unhinted(value) -> None: ...

    action = {"with a hint": hinted, "without a hint": unhinted, "by name only": "somebody.elses"}[how]
    with pytest.raises(InvalidArguments):
        await api.run(api.app, action, {"value": value})
    assert await api.all_runs() == []


@whatever_the_database
@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (float, math.nan),
        (float, math.inf),
        (list[float], [1.0, math.nan]),
        (Decimal, Decimal("NaN")),
        (deque[float], deque([math.nan])),
        (tuple[float, ...], (1.0, math.inf)),
        (dict[str, Any], {"a": deque([math.nan])}),
        (NoNumber, NoNumber.NAN),
        (Reading, Reading(value=math.nan)),
        (Any, Reading(value=math.nan)),
        (Any, Address("Main St", ["\ud800"])),
        (float | None, math.nan),
        (str, "a\0b"),
        (str, "\ud800"),
        (list[str], ["\0"]),
        (dict[str, int], {"\0": 1}),
        (Address, Address("\0")),
        (bytes, b"\0"),
    ],
    ids=str,
)
async def test_a_type_hint_opens_no_door_to_what_json_cannot_carry(api, hint, value):
    """NaN, infinities, NUL and lone surrogates are refused, whatever the hint says."""

    def action(value):
        raise AssertionError

    action.__annotations__ = {"value": hint}
    receive = api.app.action(name="receive")(action)
    with pytest.raises(InvalidArguments):
        await api.run(api.app, receive, {"value": value})
    assert await api.all_runs() == []


@whatever_the_database
@not_json
async def test_a_context_that_json_cannot_carry_is_refused(api, value):
    """Arguments *and context*."""
    done = api.scripted("done")
    with pytest.raises(InvalidArguments):
        await api.run(api.app, done.action, context=value)
    assert await api.all_runs() == []


# -- sizes -------------------------------------------------------------------------------------------------------------


async def test_arguments_of_almost_a_mebibyte_are_carried(api):
    """Args plus context <= 1 MiB."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(text: str) -> None:
        received.append(text)

    text = "x" * (MIB - 1_024)
    assert await delivered(api, receive, {"text": text}, received) == text


@pytest.mark.parametrize(
    "sizes", [(MIB + 1, 0), (0, MIB + 1), (MIB // 2 + 1, MIB // 2 + 1)], ids=["args", "context", "both together"]
)
async def test_more_than_a_mebibyte_is_refused(api, sizes):
    """Args plus context <= 1 MiB, else `PayloadTooLarge`, nothing stored."""

    @api.app.action(name="receive")
    def receive(text: str) -> None: ...

    with pytest.raises(PayloadTooLarge, match=r"\d"):
        await api.run(api.app, receive, {"text": "x" * sizes[0]}, context="x" * sizes[1])
    assert await api.all_runs() == []


async def test_the_size_is_counted_in_bytes(api):
    """A MiB is a number of bytes: half a million euro signs are too much."""

    @api.app.action(name="receive")
    def receive(text: str) -> None: ...

    with pytest.raises(PayloadTooLarge):
        await api.run(api.app, receive, {"text": "€" * (MIB // 2)})


async def test_a_payload_that_is_too_large_is_refused_by_name_too(api):
    """The limit does not depend on how the action was named."""
    with pytest.raises(PayloadTooLarge):
        await api.run(api.app, "somebody.elses", {"text": "x" * (MIB + 1)})
    assert await api.all_runs() == []


# -- return values -----------------------------------------------------------------------------------------------------


@whatever_the_database
@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (datetime, NOON, "2031-05-17T12:00:00.123456Z"),
        (date, date(2031, 5, 17), "2031-05-17"),
        (UUID, ORDER_UUID, str(ORDER_UUID)),
        (Colour, Colour.GREEN, "green"),
        (Level, Level.HIGH, 2),
        (Decimal, Decimal("1.10"), "1.10"),
        (Item, Item(sku="a", count=1), {"sku": "a", "count": 1}),
        (Address, Address("Main St", ["x"]), {"street": "Main St", "tags": ["x"]}),
        (list[Item], [Item(sku="a", count=1)], [{"sku": "a", "count": 1}]),
        (tuple[int, str], (1, "a"), [1, "a"]),
        (set[int], {1}, [1]),
        (dict[str, Any], {"a": [1, None, 2.5]}, {"a": [1, None, 2.5]}),
        (None, None, None),
        (int, 2**70, 2**70),
        (str, "ß€😀", "ß€😀"),
    ],
    ids=str,
)
async def test_a_return_value_is_stored_as_json_by_its_type_hint(api, hint, value, expected):
    """Return values are encoded by their type hints as pydantic's JSON mode does: `return_value` is a JSON value."""

    def action():
        return value

    action.__annotations__ = {"return": hint}
    api.app.action(name="give")(action)
    run_id = await api.run(api.app, "give", max_failures=0)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value=expected)


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "", "text", [], [1, [2]], {}, {"a": {"b": None}}], ids=repr)
async def test_a_return_value_without_a_hint_is_any_json_value(api, value):
    """`return_value`: JSON value."""

    @api.app.action(name="give")
    def give():
        return value

    run_id = await api.run(api.app, give)
    async with api.worker() as worker:
        result = await api.result(worker, run_id)
    assert result == Success(return_value=value)
    assert type(result.return_value) is type(value)


async def test_a_return_value_of_almost_a_mebibyte_is_carried(api):
    """Return value <= 1 MiB."""
    large = api.scripted("x" * (MIB - 1_024))
    run_id = await api.run(api.app, large.action)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="x" * (MIB - 1_024))


# -- bind --------------------------------------------------------------------------------------------------------------


async def test_a_bind_stands_for_action_and_args(api):
    """Wherever `action, args` stands, a `bind` may stand instead."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(order_id: int, when: datetime | None = None) -> None:
        received.append((order_id, when))

    runs = [
        await api.run(api.app, receive.bind(order_id=1)),
        await api.run_at(api.app, NOON, receive.bind(order_id=2)),
        await api.run_after(api.app, 5, receive.bind(order_id=3, when=NOON)),
        *await api.run_many(api.app, [Call(receive.bind(order_id=4)), Call(receive.bind(order_id=5), priority=3)]),
    ]
    args = [(await api.get(api.app, run)).args for run in runs]
    assert [arg["order_id"] for arg in args] == [1, 2, 3, 4, 5]
    async with api.worker() as worker:
        await worker.until_idle()
        api.clock.advance(10 * YEAR_MS)
        await worker.until_idle()
    assert sorted(received, key=lambda pair: pair[0])[:3] == [(1, None), (2, None), (3, NOON)]
    assert {order_id for order_id, _ in received} == {1, 2, 3, 4, 5}


async def test_a_bind_takes_options_like_any_run(api):
    """A `bind` replaces `action, args`, and nothing else."""

    @api.app.action(name="receive")
    def receive(order_id: int) -> None: ...

    run = await api.get(api.app, await api.run(api.app, receive.bind(order_id=1), queue="mail", context=5))
    assert (run.queue, run.args, run.context) == ("mail", {"order_id": 1}, 5)


@pytest.mark.parametrize("wrong", [{}, {"order_id": "seven"}, {"order_id": 7, "extra": 1}, {"order_id": math.nan}])
def test_a_bind_is_checked(database, wrong):
    """`charge.bind(order_id=7)` is a typed, checked pair of action and args."""
    app = App(f"sqlite:///{database}")

    @app.action(name="charge")
    def charge(order_id: int) -> None: ...

    with pytest.raises(InvalidArguments):
        charge.bind(**wrong)


async def test_a_bind_and_args_together_are_refused(api):
    """A `bind` stands *instead* of `action, args`."""

    @api.app.action(name="charge")
    def charge(order_id: int) -> None: ...

    with pytest.raises((InvalidArguments, TypeError, ValueError)):
        await api.run(api.app, charge.bind(order_id=7), {"order_id": 8})
    assert await api.all_runs() == []


# -- by name -----------------------------------------------------------------------------------------------------------


async def test_an_action_may_be_named(api):
    """... or the registered name as `str`."""
    received: list[Any] = []

    @api.app.action(name="receive")
    def receive(when: datetime) -> None:
        received.append(when)

    assert await delivered(api, "receive", {"when": "2031-05-17T12:00:00.123456Z"}, received) == NOON


async def test_what_another_service_implements_is_started_by_name(api):
    """... (to start what another service implements): checked for JSON alone."""
    run_id = await api.run(api.app, "billing.charge", {"anything": [1, {"goes": None}]}, context={"a": 1})

    async with api.sibling() as billing:
        received: list[Any] = []

        @billing.app.action(name="billing.charge")
        def charge(anything: list[Any]) -> str:
            received.append(anything)
            return "charged"

        async with billing.worker() as worker:
            assert await billing.result(worker, run_id) == Success(return_value="charged")
    assert received == [[1, {"goes": None}]]
    assert await api.wait(api.app, run_id) == Success(return_value="charged")


async def test_arguments_that_do_not_fit_their_action_are_a_failure(api):
    """Checked for JSON alone when started: what does not fit is a failure of the attempt, the worker lives on."""
    run_id = await api.run(api.app, "billing.charge", {"order_id": "seven"}, max_failures=0)

    async with api.sibling() as billing:

        @billing.app.action(name="billing.charge")
        def charge(order_id: int) -> None: ...

        async with billing.worker() as worker:
            result = await billing.result(worker, run_id)
            assert isinstance(result, Failed)
            assert "order_id" in result.error
            good = await billing.run(billing.app, charge, {"order_id": 7})
            assert await billing.result(worker, good) == Success(return_value=None)


def undecorated(order_id: int) -> None: ...


@whatever_the_database
@pytest.mark.parametrize(
    "action", [undecorated, print, int, 7, None, b"name", object()], ids=lambda it: type(it).__name__
)
async def test_what_is_no_registered_action_is_refused(api, action):
    """`action`: the decorated function, a `bind`, or the registered name as `str`."""
    with pytest.raises((RetrierError, TypeError)):
        await api.run(api.app, action, {"order_id": 7})
    assert await api.all_runs() == []


async def test_a_function_that_is_not_decorated_is_an_unknown_function(api):
    """`UnknownFunction` says which function, and what to do."""
    with pytest.raises(UnknownFunction, match="undecorated"):
        await api.run(api.app, undecorated, {"order_id": 7})


async def test_a_lambda_is_not_told_to_be_decorated(api):
    with pytest.raises(UnknownFunction, match="make it a def"):
        await api.run(api.app, lambda: 1)
    with pytest.raises(UnknownFunction, match="make it a def"):
        await api.run(api.app, api.scripted("done").action, on_complete=lambda _: 1)


async def test_a_mutation_is_no_action(api):
    """Only actions are run by a retrier."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx) -> None: ...

    with pytest.raises(RetrierError, match="write"):
        await api.run(api.app, write)
    assert await api.all_runs() == []


# -- on_complete and context -------------------------------------------------------------------------------------------


async def test_an_action_as_on_complete_is_refused(api):
    """`on_complete`: ... an action ... is `InvalidArguments`."""
    done = api.scripted("done")
    for on_complete in (done.action, "scripted"):
        with pytest.raises(InvalidArguments, match="scripted"):
            await api.run(api.app, done.action, on_complete=on_complete)
    assert await api.all_runs() == []


async def test_a_mutation_that_requires_more_as_on_complete_is_refused(api):
    """... or a mutation that requires parameters beyond the four of promise 4, is `InvalidArguments`."""
    done = api.scripted("done")

    @api.app.mutation(name="demanding")
    def demanding(ctx: MutationCtx, result: Any, order_id: int) -> None: ...

    for on_complete in (demanding, "demanding"):
        with pytest.raises(InvalidArguments, match="order_id"):
            await api.run(api.app, done.action, on_complete=on_complete)
    assert await api.all_runs() == []


async def test_a_mutation_with_more_parameters_that_have_defaults_is_accepted(api, note):
    """... that *requires* parameters beyond the four."""
    done = api.scripted("done")

    @api.app.mutation(name="modest")
    def modest(ctx: MutationCtx, result: Any, greeting: str = "hello") -> None:
        note(ctx, greeting)

    run_id = await api.run(api.app, done.action, on_complete=modest)
    async with api.worker() as worker:
        await api.result(worker, run_id)
        await worker.until_idle()
    assert api.notes() == ["hello"]


async def test_a_function_that_is_no_mutation_as_on_complete_is_refused(api):
    """`on_complete`: a mutation or its name."""
    done = api.scripted("done")
    with pytest.raises(RetrierError, match="undecorated"):
        await api.run(api.app, done.action, on_complete=undecorated)
    assert await api.all_runs() == []


@whatever_the_database
@pytest.mark.parametrize(
    ("hint", "context"),
    [
        (Any, None),
        (Any, 0),
        (Any, "text"),
        (Any, {"a": [1, None]}),
        (datetime, NOON),
        (UUID, ORDER_UUID),
        (Colour, Colour.RED),
        (Order, ORDER),
        (Address, Address("Main St")),
        (dict[str, Decimal], {"x": Decimal("1.10")}),
    ],
    ids=str,
)
async def test_the_context_reaches_the_callback_as_its_type_hint_says(api, hint, context):
    """Arguments, `context` and return values are encoded ... and converted back for the call."""
    received: list[Any] = []

    def callback(context):
        received.append(context)

    callback.__annotations__ = {"context": hint}
    mutation = api.app.mutation(name="receive")(callback)
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, on_complete=mutation, context=context)
    async with api.worker() as worker:
        await api.result(worker, run_id)
        await worker.until_idle()
    assert received == [context]
    assert type(received[0]) is type(context)


async def test_a_context_is_seen_in_get_without_a_callback_too(api):
    """A context is the run's own, whoever reads it."""
    done = api.scripted("done")
    run_id = await api.run(api.app, done.action, context={"order": 7})
    assert (await api.get(api.app, run_id)).context == {"order": 7}
    assert await api.cancel(api.app, run_id)
    assert (await api.get(api.app, run_id)).result == Canceled()
