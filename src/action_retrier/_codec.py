"""
Values to JSON and back, and what may not be stored.

JSON only: nothing stored is ever executed, imported or turned into an exception. What one
database would refuse (NUL characters, lone surrogates) or JSON does not have (NaN, infinities)
is refused in arguments on every database alike, and replaced in error texts, because recording a
failure must never fail.
"""

import json
import math
import re
import sys
import traceback
from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic_core import ValidationError

from .errors import PayloadTooLarge

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ARGUMENTS_LIMIT = 1024 * 1024
"""Bytes of JSON that the arguments and the context of one run may have together."""
RESULT_LIMIT = 1024 * 1024
"""Bytes of JSON that a return value may have."""
ERROR_LIMIT = 16 * 1024
"""Bytes of an error's text that are kept."""
TRACEBACK_LIMIT = 64 * 1024
"""Bytes of a traceback that are kept."""


_MOST_DIGITS = sys.int_info.default_max_str_digits
_TOO_MANY_DIGITS = re.compile(rf"\d{{{_MOST_DIGITS + 1}}}")


@cache
def adapter_of(kind: Any) -> "TypeAdapter[Any]":
    """Return pydantic's adapter of a type; pydantic is imported when the first one is needed."""
    from pydantic import TypeAdapter  # noqa: PLC0415 - most of what importing this package would cost otherwise

    return TypeAdapter(kind)


class NotJSONError(ValueError):
    """A value that JSON cannot carry; the message says which."""


def encode(adapter: "TypeAdapter[Any]", value: object) -> str:
    """
    Encode *value* by its type, as pydantic's JSON mode does.

    Raises:
        NotJSONError: JSON, or one of the databases, cannot carry it.
    """
    try:
        data = adapter.dump_json(value, warnings=False)
        text = data.decode()
    except (ValueError, TypeError) as error:  # pydantic's serialization errors are ValueErrors
        raise NotJSONError(_first_line(error)) from None
    # pydantic writes NaN as null (in models and in Any), so a null is a reason to look.
    if "null" in text or "NaN" in text or "Infinity" in text:
        _refuse_nan(adapter.dump_python(value, warnings=False))
    # Python reads back no number of more digits, and what cannot be read back must not be stored.
    if len(text) > _MOST_DIGITS and _TOO_MANY_DIGITS.search(text):
        _refuse_long_numbers(text)
    if "\\u0000" in text:
        _refuse_nul(json.loads(text))
    return text


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].removeprefix("Error serializing to JSON: ") if text else type(error).__name__


def _refuse_nan(value: object) -> None:
    match value:
        case float() if not math.isfinite(value):
            raise NotJSONError(f"{value!r} is not a JSON number")
        case str() | bytes() | bytearray():
            return
        case Mapping():
            for key, item in value.items():
                _refuse_nan(key)
                _refuse_nan(item)
        case Collection():
            for item in value:
                _refuse_nan(item)


def _refuse_long_numbers(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        raise NotJSONError(f"a number of more than {_MOST_DIGITS} digits could not be read back") from None


def _refuse_nul(value: object) -> None:
    match value:
        case str() if "\0" in value:
            raise NotJSONError(f"the string {value[:40]!r} has a NUL character, which PostgreSQL cannot store")
        case dict():
            for key, item in value.items():
                _refuse_nul(key)
                _refuse_nul(item)
        case list():
            for item in value:
                _refuse_nul(item)


def decode(adapter: "TypeAdapter[Any]", text: str) -> Any:
    """Decode JSON *text* by its type. Raises pydantic's ValidationError, a ValueError."""
    return adapter.validate_json(text)


def loads(text: str | None) -> Any:
    """Decode stored JSON to plain values; None stays None."""
    return None if text is None else json.loads(text)


def same_json(one: str, other: str) -> bool:
    """Tell whether two JSON texts mean the same, whatever the order of their keys."""
    if one == other:
        return True
    return json.dumps(json.loads(one), sort_keys=True) == json.dumps(json.loads(other), sort_keys=True)


def check_size(what: str, limit: int, *texts: str | None) -> None:
    """Raise `PayloadTooLarge` if the JSON texts are larger than *limit* bytes together."""
    # A character has at most four bytes in UTF-8: short texts need no encoding to be measured.
    if sum(len(text) for text in texts if text) * 4 <= limit:
        return
    size = sum(len(text.encode()) for text in texts if text)
    if size > limit:
        raise PayloadTooLarge(what=what, size=size, limit=limit)


def explain(error: ValidationError) -> str:
    """Say in one line what pydantic found, with the offending values."""
    found = []
    for item in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in item["loc"]) or "value"
        kind = item["type"]
        if kind == "missing":
            found.append(f"{place!r} is missing")
        elif kind == "extra_forbidden":
            found.append(f"{place!r} is not a parameter of it")
        else:
            found.append(f"{place!r}: {item['msg']}, got {_shorten(item['input'])}")
    return "; ".join(found)


def _shorten(value: object, limit: int = 80) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__ may do anything, and this is an error's text
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_text(text: str, limit: int) -> str:
    """Make *text* storable anywhere: no NUL, no lone surrogates, at most *limit* bytes, marked if cut."""
    data = text.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    mark = f"… [cut: {len(data):,} bytes]"
    return data[: limit - len(mark.encode())].decode("utf-8", "ignore") + mark


def describe_exception(error: BaseException) -> tuple[str, str, str]:
    """Return the type, the message and the traceback of *error* as texts that can be stored."""
    return (
        clean_text(type_name(type(error)), 255),
        clean_text(_message(error), ERROR_LIMIT),
        clean_text(_traceback(error), TRACEBACK_LIMIT),
    )


def type_name(cls: type) -> str:
    """Return ``module.QualName``, for builtins without the module."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception as problem:  # noqa: BLE001 - a broken __str__ must not hide the failure
        return f"<{type(error).__name__}; its message could not be read: {type(problem).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.TracebackException.from_exception(error).format())
    except Exception as problem:  # noqa: BLE001 - likewise
        return f"<the traceback could not be formatted: {type(problem).__name__}>"
