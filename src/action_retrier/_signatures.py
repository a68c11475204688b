"""How registered functions are called: validators made from their signatures, and the JSON form of arguments."""

import contextlib
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, Required

from pydantic_core import ValidationError

from ._codec import NotJSONError, adapter_of, decode, encode, explain
from .errors import InvalidArguments

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_CONTEXTS = f"{__package__}._contexts"


class Signature:
    """How a function is called: which arguments it takes, and their JSON form."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name
        self.is_async = inspect.iscoroutinefunction(function)
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name!r} cannot be registered: its signature is not readable ({error})") from None
        self.takes_ctx = bool(parameters) and parameters[0].name == "ctx"
        self.parameters = parameters[1:] if self.takes_ctx else parameters
        self._positional = [one.name for one in self.parameters if one.kind is one.POSITIONAL_ONLY]
        self._needs_arguments = any(
            one.default is one.empty for one in self.parameters if one.kind is not one.VAR_KEYWORD
        )
        for one in self.parameters:
            if one.kind is one.VAR_POSITIONAL:
                raise ValueError(f"{name!r} cannot be registered: arguments go by name, and *{one.name} has none")
        # Annotations are read now, so that what JSON cannot carry is refused where it is written;
        # those that name something defined further down are read at the first use.
        with contextlib.suppress(NameError):
            _ = self._adapter, self._return_adapter

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return typing.get_type_hints(inspect.unwrap(self.function), include_extras=True)

    @cached_property
    def _adapter(self) -> "TypeAdapter[Any]":
        from typing_extensions import TypedDict  # noqa: PLC0415 - pydantic needs this one on Python 3.11

        fields: dict[str, Any] = {}
        extra = "forbid"
        for one in self.parameters:
            hint = self._hints.get(one.name, Any)
            if one.kind is one.VAR_KEYWORD:
                extra = "allow"
                continue
            fields[one.name] = Required[hint] if one.default is one.empty else NotRequired[hint]
        # A TypedDict: what was not passed stays absent, and the function's own default applies at the call.
        make: Any = TypedDict
        arguments = make("arguments", fields)
        arguments.__pydantic_config__ = {"extra": extra}
        return self._build(arguments, fields)

    @cached_property
    def _return_adapter(self) -> "TypeAdapter[Any]":
        hint = self._hints.get("return", Any)
        return self._build(Any if hint is typing.NoReturn else hint, what="its return value")

    @cached_property
    def _may_return_none(self) -> bool:
        """Whether None needs no adapter to become null: mostly, actions return nothing."""
        hint = self._hints.get("return", Any)
        return hint is Any or hint is type(None)

    def adapter_of(self, parameter: str) -> "TypeAdapter[Any]":
        """Return the adapter of one parameter's annotation."""
        found = self._parameter_adapters.get(parameter)
        if found is None:
            hint = self._hints.get(parameter, Any)
            _refuse_ctx(self.name, parameter, hint)
            found = self._parameter_adapters[parameter] = self._build(hint, what=f"parameter {parameter!r}")
        return found

    @cached_property
    def _parameter_adapters(self) -> dict[str, "TypeAdapter[Any]"]:
        return {}

    def _build(self, hint: Any, parameters: Collection[str] = (), *, what: str = "its arguments") -> "TypeAdapter[Any]":
        from pydantic import PydanticUserError, TypeAdapter  # noqa: PLC0415 - see _codec

        try:
            return TypeAdapter(hint)
        except PydanticUserError as error:
            for one in parameters:
                self.adapter_of(one)  # raises for the one that is to blame
            raise ValueError(
                f"{self.name!r} cannot be registered: JSON cannot carry {what}, annotated {_annotation(hint)} "
                f"({_problem(error)})"
            ) from None

    def encode_arguments(self, args: Mapping[str, Any] | None) -> str:
        """
        Validate arguments and encode them as JSON text.

        Raises:
            InvalidArguments: One is wrong, missing or extra, or JSON cannot carry it there and back.
        """
        if args is None and not self._needs_arguments:
            return "{}"
        try:
            checked = self._adapter.validate_python(_mapping(self.name, args))
            text = encode(self._adapter, checked)
            decode(self._adapter, text)  # what does not come back must not be stored
        except ValidationError as error:
            raise InvalidArguments(function=self.name, problem=explain(error)) from None
        except NotJSONError as error:
            raise InvalidArguments(function=self.name, problem=f"JSON cannot carry them: {error}") from None
        except RecursionError:
            raise InvalidArguments(function=self.name, problem="they are nested too deeply") from None
        return text

    def decode_arguments(self, text: str) -> dict[str, Any]:
        """Convert stored arguments for the call. Raises pydantic's ValidationError, a ValueError."""
        if text == "{}" and not self._needs_arguments:
            return {}
        arguments: dict[str, Any] = decode(self._adapter, text)
        return arguments

    def check_arguments(self, args: Mapping[str, Any] | None) -> dict[str, Any]:
        """Validate and convert arguments for a call here and now. Raises `InvalidArguments`."""
        return self.decode_arguments(self.encode_arguments(args))

    def encode_result(self, value: object) -> str:
        """Encode what the function returned. Raises `NotJSONError`."""
        if value is None and self._may_return_none:
            return "null"
        return encode(self._return_adapter, value)

    def call(self, ctx: object, arguments: Mapping[str, Any]) -> Any:
        """Call the function, with *ctx* if it wants one."""
        positional: list[Any] = [ctx] if self.takes_ctx else []
        if self._positional:
            arguments = dict(arguments)
            positional += [arguments.pop(name) for name in self._positional if name in arguments]
        return self.function(*positional, **arguments)


def _refuse_ctx(name: str, parameter: str, hint: Any) -> None:
    """Raise ValueError for a context where it is not looked for."""
    for one in (hint, *typing.get_args(hint)):
        # By their names: the contexts are made of what stands above this module.
        kind = getattr(one, "__name__", "")
        if getattr(one, "__module__", None) == _CONTEXTS and kind in {"ActionCtx", "SyncActionCtx", "MutationCtx"}:
            article = "an" if kind == "ActionCtx" else "a"
            raise ValueError(
                f"{name!r} cannot be registered: parameter {parameter!r} is {article} {kind}: "
                "the context must be the first parameter and be named ctx"
            )


def _annotation(hint: Any) -> str:
    return inspect.formatannotation(hint)


def _problem(error: Exception) -> str:
    """Return what pydantic found, without what it advises."""
    return str(error).splitlines()[0].partition(". ")[0].rstrip(".")


def _mapping(name: str, args: object) -> Mapping[str, Any]:
    if args is None:
        return {}
    if not isinstance(args, Mapping) or not all(isinstance(key, str) for key in args):
        raise InvalidArguments(
            function=name, problem=f"args must map parameter names to values, like {{'order_id': 7}}, not {args!r:.80}"
        )
    return args


def encode_by_name(name: str, args: Mapping[str, Any] | None) -> str:
    """Encode the arguments of a function that is known by its name only: checked for JSON alone."""
    try:
        return encode(adapter_of(dict[str, Any]), dict(_mapping(name, args)))
    except NotJSONError as error:
        raise InvalidArguments(function=name, problem=f"JSON cannot carry them: {error}") from None
