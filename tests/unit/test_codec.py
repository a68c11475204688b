"""Values to JSON and back: what may be stored, what is refused, and error texts that always can be."""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from typing import Any

import pydantic
import pytest

from action_retrier._codec import (
    ERROR_LIMIT,
    TRACEBACK_LIMIT,
    NotJSONError,
    adapter_of,
    check_size,
    clean_text,
    decode,
    describe_exception,
    encode,
    explain,
    loads,
    same_json,
    type_name,
)
from action_retrier.errors import PayloadTooLarge


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: float
    label: str = ""


class Model(pydantic.BaseModel):
    value: Any = None
    number: float = 0.0


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Any, None, "null"),
        (Any, {"a": [1, 2.5, True, None, "x"]}, '{"a":[1,2.5,true,null,"x"]}'),
        (Any, "é🎉", '"é🎉"'),
        (Any, 2**80, str(2**80)),
        (Any, -0.0, "-0.0"),
        (Any, "null NaN Infinity \\u0000", '"null NaN Infinity \\\\u0000"'),
        (Any, {"\\u0000": ["\\u0000", 1]}, '{"\\\\u0000":["\\\\u0000",1]}'),
        (dt.datetime, dt.datetime(2026, 1, 1, tzinfo=dt.UTC), '"2026-01-01T00:00:00Z"'),
        (uuid.UUID, uuid.UUID(int=7), '"00000000-0000-0000-0000-000000000007"'),
        (Colour, Colour.RED, '"red"'),
        (Point, Point(1.5), '{"x":1.5,"label":""}'),
        (Model, Model(value=[None]), '{"value":[null],"number":0.0}'),
        (decimal.Decimal, decimal.Decimal("0.1"), '"0.1"'),
        (dict[int, str], {1: "a"}, '{"1":"a"}'),
    ],
)
def test_values_go_there_and_back_by_their_type(kind: Any, value: Any, text: str) -> None:
    adapter = adapter_of(kind)

    assert encode(adapter, value) == text
    assert decode(adapter, text) == value


NANS: dict[str, tuple[Any, Any]] = {
    "a float": (float, math.nan),
    "any": (Any, math.nan),
    "in a list": (list[Any], [1, [math.inf]]),
    "in a typed list": (list[float], [-math.inf]),
    "in a tuple": (tuple[float, ...], (math.nan,)),
    "in a set": (set[float], {math.inf}),
    "in a dict": (dict[str, Any], {"a": {"b": math.nan}}),
    "in a dataclass": (Point, Point(math.nan)),
    "in a model": (Model, Model(number=math.nan)),
    "in a model's any": (Model, Model(value=[math.inf])),
    "beside a null": (Any, [None, math.nan]),
}


@pytest.mark.parametrize(("kind", "value"), NANS.values(), ids=NANS)
def test_what_json_does_not_have_is_refused(kind: Any, value: Any) -> None:
    """NaN and the infinities, wherever they hide: pydantic would write null."""
    with pytest.raises(NotJSONError, match="is not a JSON number"):
        encode(adapter_of(kind), value)


@pytest.mark.parametrize("value", ["\0", ["a\0b"], {"k": "\0"}, {"\0": 1}, {"a": [{"b": "x\0"}]}], ids=ascii)
def test_nul_characters_are_refused(value: Any) -> None:
    """PostgreSQL cannot store them, so that neither database does."""
    with pytest.raises(NotJSONError, match="NUL"):
        encode(adapter_of(Any), value)


@pytest.mark.parametrize("kind", [Any, str, "model"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800"], ids=ascii)
def test_lone_surrogates_are_refused(text: str, kind: Any) -> None:
    value = Model(value=text) if kind == "model" else text
    with pytest.raises(NotJSONError):
        encode(adapter_of(Model if kind == "model" else kind), value)
    if kind is Any:
        with pytest.raises(NotJSONError):
            encode(adapter_of(Any), {text: 1})


class Odd:
    """A class that pydantic knows nothing of."""


UNKNOWN: dict[str, Any] = {
    "an object": Odd(),
    "an object in a list": [Odd()],
    "a class": object,
    "a function": type_name,
    "bytes that are no text": b"\xff",
    "a set of an object": {1, Odd()},
    "a number of 5000 digits": 10**5000,
}


@pytest.mark.parametrize("value", UNKNOWN.values(), ids=UNKNOWN)
def test_what_json_cannot_carry_is_refused_in_one_line(value: Any) -> None:
    """What could not be read back must not be stored either: a number too long for Python's own JSON."""
    with pytest.raises(NotJSONError) as caught:
        encode(adapter_of(Any), value)

    assert "\n" not in str(caught.value)
    assert str(caught.value)


def test_many_digits_in_a_string_are_just_text() -> None:
    assert encode(adapter_of(Any), "7" * 5000) == f'"{"7" * 5000}"'
    assert encode(adapter_of(Any), 10**4299) == str(10**4299)


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(NotJSONError):
        encode(adapter_of(Any), deep)
    while deep:  # or its end would be as deep a recursion
        deep = deep[0]


def test_what_refers_to_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)

    with pytest.raises(NotJSONError):
        encode(adapter_of(Any), circle)


def test_a_serializer_that_raises_is_refused() -> None:
    class Strange(pydantic.BaseModel):
        @pydantic.model_serializer
        def fail(self) -> dict[str, Any]:
            raise ValueError("strange")

    with pytest.raises(NotJSONError, match="strange"):
        encode(adapter_of(Strange), Strange())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a":1,"b":2}', '{ "b": 2, "a": 1 }', True),
        ('{"a":{"x":1,"y":2}}', '{"a":{"y":2,"x":1}}', True),
        ("[1,2]", "[2,1]", False),
        ('"é"', '"\\u00e9"', True),
        ("1", "1.0", False),
        ("1", "true", False),
        ("null", "0", False),
        ("123456789012345678901", "123456789012345678902", False),
    ],
)
def test_two_texts_mean_the_same_whatever_the_order_of_keys(one: str, other: str, *, same: bool) -> None:
    assert same_json(one, other) is same
    assert same_json(other, one) is same


def test_plain_values_are_read_from_stored_text() -> None:
    assert loads(None) is None
    assert loads("null") is None
    assert loads('{"a":[1]}') == {"a": [1]}


# Sizes.


@pytest.mark.parametrize("character", ["a", "é", "€", "🎉"])
def test_sizes_are_counted_in_bytes(character: str) -> None:
    """The limit is one of bytes, and exact."""
    count = 1200 // len(character.encode())
    text = character * count

    check_size("it", 1200, text)
    check_size("it", 1200, text[:-1], None, character)
    with pytest.raises(PayloadTooLarge) as caught:
        check_size("it", 1199, text)
    with pytest.raises(PayloadTooLarge):
        check_size("it", 1200, text, "a")
    assert (caught.value.what, caught.value.size, caught.value.limit) == ("it", 1200, 1199)


def test_nothing_has_no_size() -> None:
    check_size("it", 0, None, "")


# Error texts.


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("", ""),
        ("plain é 🎉", "plain é 🎉"),
        ("a\0b", "a␀b"),
        ("a\ud800b", "a?b"),
        ("\udfff\0\ud800", "?␀?"),
        ("tab\tline\n", "tab\tline\n"),
    ],
)
def test_an_error_text_is_made_storable(text: str, clean: str) -> None:
    """Recording a failure must never fail."""
    assert clean_text(text, 100) == clean


@pytest.mark.parametrize("character", ["a", "é", "€", "🎉", "\0", "\ud800"], ids=ascii)
@pytest.mark.parametrize("length", [99, 100, 101, 5000])
def test_a_long_text_is_cut_and_says_so(character: str, length: int) -> None:
    """At most so many bytes, never half a character, and marked with the size it had."""
    whole = clean_text(character * length, 10**6)
    size = len(whole.encode())

    cut = clean_text(character * length, 100)

    assert len(cut.encode()) <= 100
    if size <= 100:
        assert cut == whole
    else:
        assert cut.endswith(f"… [cut: {size:,} bytes]")
        assert set(cut.partition("…")[0]) == set(whole)


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class NoStr(Exception):
    def __str__(self) -> Any:
        return 7


class EndlessStr(Exception):
    def __str__(self) -> str:
        return str(self)


class BrokenRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("error", [BrokenStr(), NoStr(), EndlessStr()], ids=["raises", "no string", "endless"])
def test_a_broken_message_does_not_hide_the_failure(error: Exception) -> None:
    name, message, traceback = describe_exception(error)

    assert name.endswith(type(error).__name__)
    assert type(error).__name__ in message
    assert "could not be read" in message
    assert traceback


class BrokenTraceback(SyntaxError):
    @property
    def filename(self) -> str:
        raise RuntimeError("no")


def test_a_traceback_that_cannot_be_formatted_does_not_hide_the_failure() -> None:
    name, message, traceback = describe_exception(BrokenTraceback("message"))

    assert name.endswith("BrokenTraceback")
    assert message
    assert traceback == "<the traceback could not be formatted: RuntimeError>"


def test_a_broken_repr_does_no_harm() -> None:
    assert describe_exception(BrokenRepr("message"))[1] == "message"


def test_an_error_without_a_message_says_its_class() -> None:
    assert describe_exception(ValueError())[:2] == ("ValueError", "ValueError")
    assert describe_exception(ValueError(""))[1] == "ValueError"


def test_errors_are_named_with_their_module_unless_they_are_builtins() -> None:
    class Inner(Exception):
        pass

    assert type_name(KeyError) == "KeyError"
    assert type_name(json.JSONDecodeError) == "json.decoder.JSONDecodeError"
    assert type_name(Inner).endswith("without_their_module_unless_they_are_builtins.<locals>.Inner") or (
        f"{Inner.__module__}.{Inner.__qualname__}" == type_name(Inner)
    )


def test_a_traceback_tells_of_causes_and_notes() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            problem = ValueError("outer \0")
            problem.add_note("a note")
            raise problem from error
    except ValueError as error:
        traceback = describe_exception(error)[2]

    for part in ("KeyError: 'inner'", "direct cause", "ValueError: outer ␀", "a note", "test_a_traceback_tells"):
        assert part in traceback


def test_everything_that_is_kept_of_an_error_is_limited() -> None:
    class_ = type("E" * 1000, (Exception,), {})
    try:
        raise class_("x" * 10**6)
    except Exception as error:  # noqa: BLE001 - made above
        name, message, traceback = describe_exception(error)

    assert len(name.encode()) <= 255
    assert len(message.encode()) <= ERROR_LIMIT
    assert len(traceback.encode()) <= TRACEBACK_LIMIT
    assert all(text.endswith("bytes]") for text in (name, message, traceback))


def test_groups_and_recursion_errors_can_be_described() -> None:
    def endless(depth: int) -> int:
        return endless(depth + 1)

    with pytest.raises(RecursionError) as caught:
        endless(0)
    for error in (caught.value, ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [KeyError("b")])])):
        name, message, traceback = describe_exception(error)
        assert name in {"RecursionError", "ExceptionGroup"}
        assert message
        assert traceback


# What pydantic found.


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, ["'number' is missing"]),
        ({"number": 1, "more": 2}, ["'more' is not a parameter of it"]),
        ({"number": "x"}, ["'number': Input should be a valid integer", "got 'x'"]),
        ({"number": "x" * 500}, ["got 'xxx", "…"]),
        ({"number": [1] * 500}, ["got [1, 1", "…"]),
        ({"number": BadRepr()}, ["got <BadRepr>"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_value(given: dict[str, Any], parts: list[str]) -> None:
    class Arguments(pydantic.BaseModel, extra="forbid"):
        number: int

    with pytest.raises(pydantic.ValidationError) as caught:
        Arguments.model_validate(given)
    text = explain(caught.value)

    assert "\n" not in text
    assert len(text) < 300
    for part in parts:
        assert part in text
