"""Values, whatever they are: stored and read back as they were, or refused alike on every way in."""

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from action_retrier._codec import (
    NotJSONError,
    adapter_of,
    clean_text,
    decode,
    describe_exception,
    encode,
    loads,
    same_json,
)
from action_retrier._lifecycle import Raised, Succeeded
from action_retrier._signatures import Signature, encode_by_name
from action_retrier.errors import InvalidArguments
from action_retrier.results import Completed, Failed, Success
from action_retrier.testing import ManualClock

from ..stores import SYSTEMS, Store, open_system

storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
any_text = st.text(st.characters(codec=None))
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)


def values(text: st.SearchStrategy[str], number: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | number | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=12,
    )


storable = values(storable_text, numbers)
anything = values(any_text, st.integers(-(10**30), 10**30) | st.floats())


def is_storable(value: Any) -> bool:
    """What the documentation says may be stored, in plain Python."""
    match value:
        case float():
            return math.isfinite(value)
        case str():
            return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
        case list():
            return all(is_storable(item) for item in value)
        case dict():
            return all(is_storable(key) and is_storable(item) for key, item in value.items())
    return True


def refused(call: Any, error: type[Exception]) -> bool:
    try:
        call()
    except error:
        return True
    return False


@given(storable)
def test_what_may_be_stored_comes_back_as_it_was(value: Any) -> None:
    text = encode(adapter_of(Any), value)

    assert decode(adapter_of(Any), text) == value
    assert loads(text) == value


def charge(value: Any) -> Any:
    """An action that takes anything."""


@given(anything)
@example(["\ud800"])
@example({"\0": 1})
@example([None, math.nan])
@example({"": [math.inf]})
def test_what_may_not_be_stored_is_refused_alike_on_every_way_in(value: Any) -> None:
    """As an argument, by name only, as a context, as a result: one rule on every database."""
    signature = Signature(charge, "charge")
    answers = {
        refused(lambda: encode(adapter_of(Any), value), NotJSONError),
        refused(lambda: signature.encode_arguments({"value": value}), InvalidArguments),
        refused(lambda: signature.encode_result(value), NotJSONError),
        refused(lambda: encode_by_name("charge", {"value": value}), InvalidArguments),
    }

    assert answers == {not is_storable(value)}


@given(storable)
def test_a_value_means_the_same_however_it_is_written(value: Any) -> None:
    spaced = json.dumps(value, indent=3, sort_keys=True, ensure_ascii=True)

    assert same_json(spaced, encode(adapter_of(Any), value))


@given(storable, storable)
def test_two_values_are_the_same_only_if_they_are_equal(one: Any, other: Any) -> None:
    same = same_json(json.dumps(one), json.dumps(other))

    assert not same or one == other


@given(any_text, st.integers(40, 200))
@example("\0" * 300, 40)
@example("\ud800" * 300, 41)
@example("🎉" * 300, 43)
def test_any_text_can_be_made_storable(text: str, limit: int) -> None:
    """Recording a failure must never fail, and what is storable and short stays as it is."""
    clean = clean_text(text, limit)

    assert is_storable(clean)
    assert len(clean.encode()) <= limit
    assert clean_text(clean, limit) == clean
    if is_storable(text) and len(text.encode()) <= limit:
        assert clean == text


@given(any_text)
def test_any_error_can_be_described(text: str) -> None:
    name, message, traceback = describe_exception(
        type("E", (Exception,), {"__module__": text, "__qualname__": text})(text)
    )

    for told in (name, message, traceback):
        assert is_storable(told)


@pytest.fixture(scope="module", params=SYSTEMS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        system = open_system(request.param, Path(folder))
        store = Store(system, "sync", ManualClock())
        yield store
        store.close()
        system.close()


@settings(max_examples=60, deadline=None)
@given(value=storable, text=any_text)
def test_what_is_stored_is_what_is_told(store: Store, value: Any, text: str) -> None:
    """Arguments, contexts, results and errors pass through JSON inside SQL, and nothing happens to them there."""
    encoded = encode(adapter_of(Any), value)
    error = clean_text(text, 1000)
    worker = store.worker()
    good = store.start(args=encode(adapter_of(Any), {"value": value}), context=encoded)
    store.report(store.claim_one(worker), worker, Succeeded(encoded))
    bad = store.start(max_failures=0)
    store.report(store.claim_one(worker), worker, Raised(error, error, error))

    run = store.get(good)
    assert run.args == {"value": value}
    assert run.context == value
    assert store.status(good) == Completed(Success(value))
    assert store.status(bad) == Completed(Failed(error, error))
    assert store.get(bad).attempts[0].traceback == error
