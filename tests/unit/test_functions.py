"""Registered functions: their names, and what the registry finds by them."""

import enum
import functools
import gc
import math
import re
import sys
import types
from collections.abc import AsyncIterator, Iterator
from importlib.machinery import ModuleSpec
from typing import Any

import pydantic
import pytest

from action_retrier._functions import (
    Action,
    Bound,
    Mutation,
    check_exception_types,
    check_mutation_options,
    encode_context,
    name_of,
)
from action_retrier._registry import Registry
from action_retrier.errors import InvalidArguments, PayloadTooLarge, UnknownFunction


def plain(order_id: int) -> None:
    """An action at the top of a module."""


async def plain_async() -> None:
    """Another."""


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Colour(enum.Enum):
    RED = "red"


class Order(pydantic.BaseModel):
    item: "DefinedLater"  # noqa: F821 - that is what it is for


def wrapped(function: Any) -> Any:
    """Decorate as users do."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Service:
    def method(self) -> None:
        """One that needs an object."""

    @wrapped
    def wrapped_method(self) -> None:
        """Likewise."""

    @classmethod
    def class_method(cls) -> None:
        """Likewise."""

    @staticmethod
    def static() -> None:
        """One that is found by its class."""

    def __call__(self) -> None:
        """An object that can be called has no name."""


# Names.


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (plain, "plain"),
        (plain_async, "plain_async"),
        (Service.static, "Service.static"),
    ],
)
def test_a_function_is_named_by_its_module_and_qualname(function: Any, name: str) -> None:
    assert name_of(function, None, "an action") == f"{__name__}:{name}"


@pytest.mark.parametrize("name", ["charge", "billing:charge", "ünïcode ok", "n" * 255])
def test_a_name_that_is_given_is_the_name(name: str) -> None:
    assert name_of(plain, name, "an action") == name


def test_a_name_of_its_own_lets_a_nested_function_be_found() -> None:
    def nested() -> None:
        """Nobody could import it."""

    with pytest.raises(ValueError, match=r"defined inside a function.*name=\.\.\."):
        name_of(nested, None, "an action")
    assert name_of(nested, "nested", "an action") == "nested"


@pytest.mark.parametrize("name", ["", "n" * 256, "a\nb", "a\0b"], ids=ascii)
def test_a_name_must_be_one(name: str) -> None:
    with pytest.raises(ValueError, match="name must have 1 to 255 printable characters"):
        name_of(plain, name, "an action")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (lambda: None, "a lambda cannot be registered as an action"),
        (functools.partial(plain, 1), "it has no name"),
        (Service(), "it has no name"),
        (generator, "it is a generator"),
        (async_generator, "it is a generator"),
        (Service, "decorate a plain function"),
        (7, "decorate a plain function"),
        (Action(plain, "taken"), "decorate a plain function"),
        (Mutation(plain, "taken"), "decorate a plain function"),
    ],
    ids=[
        "lambda",
        "partial",
        "callable object",
        "generator",
        "async generator",
        "class",
        "number",
        "action",
        "mutation",
    ],
)
@pytest.mark.parametrize("name", [None, "charge"])
def test_what_cannot_be_registered_is_said_so(given: Any, problem: str, name: str | None) -> None:
    with pytest.raises(ValueError, match=problem):
        name_of(given, name, "an action")


@pytest.mark.parametrize("name", [None, "charge"])
@pytest.mark.parametrize(
    "method",
    [Service.method, Service().method, Service.wrapped_method, Service.class_method],
    ids=["in the class", "bound", "wrapped", "class method"],
)
def test_a_method_cannot_be_registered(method: Any, name: str | None) -> None:
    """There is no object to call it on."""
    with pytest.raises(ValueError, match=r"'Service\.\w+' is a method: an action has no object.*at module level"):
        name_of(method, name, "an action")


def test_a_method_of_a_class_in_a_function_cannot_be_registered_either() -> None:
    class Local:
        def method(self) -> None:
            """One that no name makes callable."""

    with pytest.raises(ValueError, match="is a method: a mutation has no object"):
        name_of(Local.method, "charge", "a mutation")


def test_a_function_without_a_readable_signature_cannot_be_registered() -> None:
    """Wherever it is defined: nobody could tell its arguments."""

    class Local:
        @staticmethod
        def send() -> None: ...

    Local.send.__signature__ = "unreadable"  # type: ignore[attr-defined]
    for kind in (Action, Mutation):
        with pytest.raises(ValueError, match="'send' cannot be registered: its signature is not readable"):
            kind(Local.send, name_of(Local.send, "send", "an action"))


def test_arguments_without_a_name_cannot_be_registered() -> None:
    def charge(*amounts: int) -> None: ...

    with pytest.raises(ValueError, match=r"arguments go by name, and \*amounts has none"):
        Action(charge, "charge")


def test_what_an_argument_is_made_of_may_be_defined_further_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward reference is looked up when it is needed, inside of a model too."""

    def ship(order: Order) -> None: ...

    action = Action(ship, "ship")
    monkeypatch.setitem(globals(), "DefinedLater", Colour)
    assert action.signature.encode_arguments({"order": {"item": "red"}}) == '{"order":{"item":"red"}}'
    with pytest.raises(InvalidArguments, match=r"order\.item"):
        action.signature.encode_arguments({"order": {"item": "blue"}})


def test_self_is_a_parameter_like_others_outside_of_classes() -> None:
    def nested(self: int) -> None:
        """An action about some self."""

    assert name_of(nested, "charge", "an action") == "charge"


def test_static_methods_are_functions() -> None:
    static = vars(Service)["static"]  # what a decorator above @staticmethod sees

    assert name_of(static, None, "an action") == f"{__name__}:Service.static"
    assert Action(static, "static").signature.parameters == []


@pytest.mark.parametrize(
    ("main", "module"),
    [
        ({"__spec__": ModuleSpec("job.run", None)}, "job.run"),
        ({"__spec__": None, "__file__": "/somewhere/job.py"}, "job"),
        ({"__file__": "job.py"}, "job"),
        ({"__spec__": ModuleSpec("__main__", None), "__file__": "/somewhere/job.zip/__main__.py"}, "job"),
        ({}, "interactive"),
    ],
    ids=["python -m", "python file", "no spec", "a zip", "a prompt"],
)
def test_a_script_is_named_as_other_processes_import_it(
    monkeypatch: pytest.MonkeyPatch, main: dict[str, Any], module: str
) -> None:
    """`python job.py` and `worker job:app` mean the same function."""
    stand_in = types.ModuleType("__main__")
    vars(stand_in).update(main)
    monkeypatch.setitem(sys.modules, "__main__", stand_in)

    def script() -> None:
        """A function of the script."""

    monkeypatch.setattr(script, "__module__", "__main__")
    monkeypatch.setattr(script, "__qualname__", "script")

    assert name_of(script, None, "an action") == f"{module}:script"


# The registry.


@pytest.fixture
def charge() -> Action[Any, Any, Any]:
    return Action(plain, "charge", aliases=["old charge"])


@pytest.fixture
def registry(charge: Action[Any, Any, Any]) -> Registry:
    registry = Registry()
    registry.add_action(charge)
    registry.add_mutation(Mutation(plain_async, "done"))
    return registry


@pytest.mark.parametrize("name", ["charge", "old charge", "done"])
@pytest.mark.parametrize("kind", ["action", "mutation", "alias"])
def test_a_name_is_taken_once(registry: Registry, name: str, kind: str) -> None:
    """Actions, their aliases and mutations share their names; what is refused changes nothing."""
    before = dict(registry.actions), dict(registry.mutations)
    with pytest.raises(ValueError, match="registered already"):
        match kind:
            case "action":
                registry.add_action(Action(plain_async, name))
            case "mutation":
                registry.add_mutation(Mutation(plain_async, name))
            case "alias":
                registry.add_action(Action(plain_async, "new", aliases=["free", name]))

    assert (registry.actions, registry.mutations) == before


@pytest.mark.parametrize("name", ["charge", "old charge", "done"])
def test_a_taken_name_is_said_with_the_place_of_the_first_function(registry: Registry, name: str) -> None:
    first = plain_async if name == "done" else plain
    place = f"{first.__name__} ({__file__}:{first.__code__.co_firstlineno})"

    with pytest.raises(ValueError, match=re.escape(place)):
        registry.add_action(Action(takes_none, name))


def test_a_taken_name_of_a_function_without_a_place_is_said_all_the_same(registry: Registry) -> None:
    registry.add_action(Action(math.sqrt, "root"))

    with pytest.raises(ValueError, match="'root' is registered already, for action sqrt: give"):
        registry.add_action(Action(plain, "root"))


def test_an_action_is_found_by_itself_its_name_and_its_aliases(
    registry: Registry, charge: Action[Any, Any, Any]
) -> None:
    """An old name starts the action under its new one."""
    for given in (charge, "charge", "old charge"):
        assert registry.find_action(given) == ("charge", charge)


def test_a_name_that_another_service_knows_is_only_a_name(registry: Registry) -> None:
    assert registry.find_action("theirs") == ("theirs", None)
    assert registry.find_callback("theirs") == ("theirs", None)


def test_a_name_that_is_not_registered_is_warned_of_once(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """It may be another service's, or a typo; and what is known is no reason to warn."""
    for given in ("chrage", "charge", "old charge", "chrage"):
        registry.find_action(given)
    registry.find_callback("dine")
    registry.find_callback("done")
    registry.find_callback("dine")

    assert [record.getMessage() for record in caplog.records] == [
        "action 'chrage' is not registered with this app: its runs wait for a worker that knows it "
        "(registered here: charge, old charge)",
        "on_complete 'dine' is not registered with this app: its runs wait for a worker that knows it "
        "(registered here: done)",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_each_app_warns_for_itself_and_names_some_that_it_knows(caplog: pytest.LogCaptureFixture) -> None:
    for count in (0, 1, 11):
        registry = Registry()
        for number in range(count):
            registry.add_action(Action(plain, f"a{number:02}"))
        registry.find_action("theirs")

    told = [record.getMessage().partition("registered here: ")[2] for record in caplog.records]
    assert told == ["a00)", "a00, a01, a02, a03, a04, a05, a06, a07, a08, a09, …)"]


def test_a_name_that_only_filters_is_not_warned_of(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    assert registry.find_action("theirs", starts=False) == ("theirs", None)
    assert caplog.records == []


def test_a_coroutine_is_an_action_that_has_been_called(registry: Registry) -> None:
    """Python does not warn of it as never awaited, too: a warning is an error here."""
    with pytest.raises(
        InvalidArguments,
        match=r"'plain_async' has been called: pass the function itself and its arguments, or plain_async\.bind\(",
    ):
        registry.find_action(plain_async())
    gc.collect()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("done", InvalidArguments),
        (Mutation(plain, "done"), InvalidArguments),
        (Action(plain, "charge"), UnknownFunction),
        (plain, UnknownFunction),
        (lambda: 1, UnknownFunction),
        (7, InvalidArguments),
        (None, InvalidArguments),
        ("", ValueError),
        ("a\0", ValueError),
    ],
    ids=["a mutation's name", "a mutation", "another app's", "undecorated", "a lambda", "7", "None", "empty", "NUL"],
)
def test_what_is_no_action_is_said_so(registry: Registry, given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        registry.find_action(given)


@pytest.mark.parametrize("given", ["charge", "old charge"])
def test_a_callback_must_be_a_mutation(registry: Registry, charge: Action[Any, Any, Any], given: str) -> None:
    for one in (given, charge, Bound(charge, {})):
        with pytest.raises(InvalidArguments, match="must be a mutation"):
            registry.find_callback(one)


def test_a_mutation_is_found_by_itself_and_its_name(registry: Registry) -> None:
    mutation = registry.mutations["done"]

    assert registry.find_mutation(mutation) is registry.find_mutation("done") is mutation
    assert registry.find_callback(mutation) == registry.find_callback("done") == ("done", mutation)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("theirs", UnknownFunction),
        (plain, UnknownFunction),
        (Mutation(plain, "done"), UnknownFunction),
        ("charge", UnknownFunction),
        (Action(plain, "charge"), InvalidArguments),
        (7, InvalidArguments),
    ],
    ids=["unknown name", "undecorated", "another app's", "an action's name", "an action", "7"],
)
def test_what_is_no_mutation_is_said_so(registry: Registry, given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        registry.find_mutation(given)


# Callbacks.


def takes_all(ctx: Any, run_id: str, result: Any, context: Any) -> None: ...
def takes_some(result: Any) -> None: ...
def takes_none() -> None: ...
def takes_any(**rest: Any) -> None: ...
def takes_defaults(ctx: Any, more: int = 3, context: int = 0) -> None: ...
def takes_more(ctx: Any, result: Any, more: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (takes_all, {"run_id", "result", "context"}),
        (takes_some, {"result"}),
        (takes_none, set()),
        (takes_any, {"run_id", "result", "context"}),
        (takes_defaults, {"context"}),
    ],
)
def test_a_callback_is_given_what_it_names(function: Any, given: set[str]) -> None:
    mutation: Mutation[Any, Any] = Mutation(function, "done")
    mutation.check_as_callback()

    assert set(mutation.callback_arguments(run_id="r", result=1, context="2")) == given


def test_a_callback_that_requires_more_is_refused() -> None:
    with pytest.raises(InvalidArguments, match="it also requires more: pass such values as context"):
        Mutation(takes_more, "done").check_as_callback()


def test_a_context_is_read_by_its_annotation() -> None:
    mutation: Mutation[Any, Any] = Mutation(takes_defaults, "done")

    assert mutation.encode_context("12") == "12"
    assert mutation.callback_arguments(run_id="r", result=1, context="12") == {"context": 12}
    with pytest.raises(InvalidArguments, match="context"):
        mutation.encode_context("twelve")


def test_a_context_that_json_cannot_carry_is_refused_whatever_its_annotation() -> None:
    def done(context: float) -> None: ...

    with pytest.raises(InvalidArguments, match="JSON cannot carry context: nan is not a JSON number"):
        Mutation(done, "done").encode_context(math.nan)


def test_arguments_and_context_share_one_limit() -> None:
    assert encode_context(None, "charge", None, "{}") is None
    with pytest.raises(PayloadTooLarge):
        encode_context(None, "charge", "x" * 600_000, "x" * 600_000)


# Options of decorators.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (ValueError, (ValueError,)),
        ((KeyError, OSError), (KeyError, OSError)),
        ([BaseException], (BaseException,)),
        ((), ()),
    ],
)
def test_exception_types_may_be_one_or_several(given: Any, expected: tuple[type, ...]) -> None:
    assert check_exception_types("retry_on", given) == expected


@pytest.mark.parametrize("given", [None, int, "ValueError", [int], ValueError(), 7], ids=repr)
def test_what_is_no_exception_type_is_said_so(given: Any) -> None:
    with pytest.raises(TypeError, match="retry_on must be an exception type"):
        check_exception_types("retry_on", given)


@pytest.mark.parametrize(
    ("retry_on", "no_retry_on", "error", "retried"),
    [
        (None, (), ValueError(), True),
        (None, (), SystemExit(), True),
        (None, (LookupError,), KeyError(), False),
        ((OSError,), (), OSError(), True),
        ((OSError,), (), ConnectionError(), True),
        ((OSError,), (), ValueError(), False),
        ((OSError,), (ConnectionError,), ConnectionError(), False),
        ((OSError,), (ConnectionError,), FileNotFoundError(), True),
    ],
)
def test_an_action_says_what_is_worth_a_retry(
    retry_on: Any, no_retry_on: Any, error: BaseException, *, retried: bool
) -> None:
    """`no_retry_on` wins over `retry_on`."""
    action: Action[Any, Any, Any] = Action(plain, "charge", retry_on=retry_on, no_retry_on=no_retry_on)

    assert action.retries(error) is retried


@pytest.mark.parametrize(("isolation", "timeout_ms"), [("serializable", 5000), ("read committed", 0.5)])
def test_a_mutations_options_may_be(isolation: str, timeout_ms: float) -> None:
    check_mutation_options(isolation, timeout_ms)


@pytest.mark.parametrize(
    ("isolation", "timeout_ms", "error"),
    [
        ("snapshot", 5000, ValueError),
        (None, 5000, ValueError),
        ("serializable", 0, ValueError),
        ("serializable", -1, ValueError),
        ("serializable", float("nan"), ValueError),
        ("serializable", None, TypeError),
        ("serializable", "5000", TypeError),
    ],
)
def test_a_mutations_options_may_not_be(isolation: Any, timeout_ms: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_mutation_options(isolation, timeout_ms)


def test_a_registered_function_is_still_the_function(charge: Action[Any, Any, Any]) -> None:
    assert charge(7) is None
    assert (charge.__name__, charge.__doc__, charge.__wrapped__) == ("plain", plain.__doc__, plain)
    assert repr(charge) == "<action 'charge'>"


@pytest.mark.parametrize(
    ("args", "kwargs", "bound"),
    [((7,), {}, {"order_id": 7}), ((), {"order_id": 7}, {"order_id": 7})],
)
def test_a_bind_pairs_an_action_with_arguments(
    charge: Action[Any, Any, Any], args: Any, kwargs: Any, bound: Any
) -> None:
    pair = charge.bind(*args, **kwargs)

    assert (pair.action, pair.args) == (charge, bound)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"order_id": 2}), ((), {"order": 1}), (("x",), {})]
)
def test_a_bind_that_does_not_fit_is_refused(charge: Action[Any, Any, Any], args: Any, kwargs: Any) -> None:
    with pytest.raises(InvalidArguments, match="'charge'"):
        charge.bind(*args, **kwargs)
