"""Registered functions: their names, and the validators made from their signatures."""

import contextlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any, Generic, Literal, NotRequired, ParamSpec, Required, TypeVar

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one on Python 3.11

from ._codec import ANY, ARGUMENTS_LIMIT, OBJECT, NotJSONError, check_size, decode, encode, explain
from ._policy import check_name, check_number
from .errors import InvalidArguments, UnknownFunction

P = ParamSpec("P")
B = ParamSpec("B")
R = TypeVar("R")

Isolation = Literal["serializable", "read committed"]
CALLBACK_PARAMETERS = ("ctx", "run_id", "result", "context")
DEFAULT_MUTATION_TIMEOUT_MS = 5000


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
    def _adapter(self) -> TypeAdapter[Any]:
        fields: dict[str, Any] = {}
        config = ConfigDict(extra="forbid")
        for one in self.parameters:
            hint = self._hints.get(one.name, Any)
            if one.kind is one.VAR_KEYWORD:
                config = ConfigDict(extra="allow")
                continue
            fields[one.name] = Required[hint] if one.default is one.empty else NotRequired[hint]
        # A TypedDict: what was not passed stays absent, and the function's own default applies at the call.
        make: Any = TypedDict
        arguments = make("arguments", fields)
        arguments.__pydantic_config__ = config
        return self._build(arguments)

    @cached_property
    def _return_adapter(self) -> TypeAdapter[Any]:
        hint = self._hints.get("return", Any)
        return ANY if hint in {Any, typing.NoReturn} else self._build(hint)

    def adapter_of(self, parameter: str) -> TypeAdapter[Any]:
        """Return the adapter of one parameter's annotation."""
        found = self._parameter_adapters.get(parameter)
        if found is None:
            hint = self._hints.get(parameter, Any)
            found = self._parameter_adapters[parameter] = ANY if hint is Any else self._build(hint)
        return found

    @cached_property
    def _parameter_adapters(self) -> dict[str, TypeAdapter[Any]]:
        return {}

    def _build(self, hint: Any) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(hint)
        except PydanticSchemaGenerationError as error:
            raise ValueError(
                f"{self.name!r} cannot be registered: JSON cannot carry one of its annotations ({_first_line(error)})"
            ) from None
        except PydanticUserError as error:
            raise NameError(str(error)) from None  # a forward reference inside: tried again at the first use

    def encode_arguments(self, args: Mapping[str, Any] | None) -> str:
        """
        Validate arguments and encode them as JSON text.

        Raises:
            InvalidArguments: One is wrong, missing or extra, or JSON cannot carry it there and back.
        """
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
        arguments: dict[str, Any] = decode(self._adapter, text)
        return arguments

    def check_arguments(self, args: Mapping[str, Any] | None) -> dict[str, Any]:
        """Validate and convert arguments for a call here and now. Raises `InvalidArguments`."""
        return self.decode_arguments(self.encode_arguments(args))

    def encode_result(self, value: object) -> str:
        """Encode what the function returned. Raises `NotJSONError`."""
        return encode(self._return_adapter, value)

    def call(self, ctx: object, arguments: Mapping[str, Any]) -> Any:
        """Call the function, with *ctx* if it wants one."""
        rest = dict(arguments)
        positional = [rest.pop(name) for name in self._positional if name in rest]
        if self.takes_ctx:
            return self.function(ctx, *positional, **rest)
        return self.function(*positional, **rest)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


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
        return encode(OBJECT, dict(_mapping(name, args)))
    except NotJSONError as error:
        raise InvalidArguments(function=name, problem=f"JSON cannot carry them: {error}") from None


class _Registered(Generic[P, R]):
    """A function with a name; calling it calls the function."""

    kind: str

    def __init__(self, function: Callable[P, R], name: str) -> None:
        self.function = function
        self.name = name
        self.signature = Signature(function, name)
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, here and now."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"


class Action(_Registered[P, R], Generic[P, B, R]):
    """
    A registered action. Calling it calls the function itself.

    Attributes:
        name: Under which its runs are stored.
        aliases: Older names that it answers to.
        options: The policy options that its decorator set.
    """

    kind = "action"

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        *,
        aliases: Collection[str] = (),
        retry_on: tuple[type[BaseException], ...] | None = None,
        no_retry_on: tuple[type[BaseException], ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(function, name)
        self.aliases = tuple(aliases)
        self.retry_on = retry_on
        self.no_retry_on = no_retry_on
        self.options = dict(options or {})

    def bind(self, *args: B.args, **kwargs: B.kwargs) -> "Bound":
        """
        Pair the action with arguments, typed and checked, to be passed where ``action, args`` stand.

        Raises:
            InvalidArguments: They do not fit the signature, or JSON cannot carry them.
        """
        arguments: dict[str, Any] = {}
        names = [one.name for one in self.signature.parameters if one.kind is not one.VAR_KEYWORD]
        if len(args) > len(names):
            raise InvalidArguments(function=self.name, problem=f"{len(args)} values for {len(names)} parameters")
        arguments.update(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in arguments:
                raise InvalidArguments(function=self.name, problem=f"{name!r} is given twice")
            arguments[name] = value
        self.signature.encode_arguments(arguments)
        return Bound(self, arguments)

    def retries(self, error: BaseException) -> bool:
        """Tell whether the action's own error is one that is retried."""
        if isinstance(error, self.no_retry_on):
            return False
        return self.retry_on is None or isinstance(error, self.retry_on)


@typing.final
@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """An action and arguments that fit it; made by ``action.bind(...)``."""

    action: Action[Any, Any, Any]
    args: Mapping[str, Any]


class Mutation(_Registered[P, R]):
    """
    A registered mutation: runs inside one database transaction. Calling it calls the function itself.

    Attributes:
        name: Under which runs remember it as their callback.
        isolation: ``serializable``, or ``read committed``, which lets its transaction be shared with others.
        timeout_ms: After this it is rolled back and counts as raising.
    """

    kind = "mutation"

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        *,
        isolation: Isolation = "serializable",
        timeout_ms: float = DEFAULT_MUTATION_TIMEOUT_MS,
    ) -> None:
        super().__init__(function, name)
        self.isolation = isolation
        self.timeout_ms = timeout_ms

    def check_as_callback(self) -> None:
        """Raise `InvalidArguments` if it requires what a callback is not given."""
        required = [
            one.name
            for one in self.signature.parameters
            if one.default is one.empty and one.kind is not one.VAR_KEYWORD and one.name not in CALLBACK_PARAMETERS
        ]
        if required:
            raise InvalidArguments(
                function=self.name,
                problem=f"as on_complete it is given {', '.join(CALLBACK_PARAMETERS)}, but it also requires "
                f"{', '.join(required)}: pass such values as context",
            )

    def encode_context(self, context: object) -> str:
        """Validate a callback's context by the annotation of its parameter, and encode it."""
        adapter = self.signature.adapter_of("context")
        try:
            text = encode(adapter, adapter.validate_python(context))
            decode(adapter, text)
        except ValidationError as error:
            raise InvalidArguments(function=self.name, problem=f"context: {explain(error)}") from None
        except NotJSONError as error:
            raise InvalidArguments(function=self.name, problem=f"JSON cannot carry context: {error}") from None
        return text

    def callback_arguments(self, *, run_id: str, result: object, context: str | None) -> dict[str, Any]:
        """Return those of the callback's arguments that the function names."""
        names = {one.name for one in self.signature.parameters}
        takes_all = any(one.kind is one.VAR_KEYWORD for one in self.signature.parameters)
        given: dict[str, Any] = {}
        if takes_all or "run_id" in names:
            given["run_id"] = run_id
        if takes_all or "result" in names:
            given["result"] = result
        if takes_all or "context" in names:
            given["context"] = None if context is None else decode(self.signature.adapter_of("context"), context)
        return given


def encode_context(mutation: Mutation[Any, Any] | None, name: str, context: object, args: str) -> str | None:
    """Encode the context of a run, by its callback's annotation if that is known, and check the size."""
    text = None
    if context is not None:
        if mutation is not None:
            text = mutation.encode_context(context)
        else:
            try:
                text = encode(ANY, context)
            except NotJSONError as error:
                raise InvalidArguments(function=name, problem=f"JSON cannot carry context: {error}") from None
    check_size(f"arguments and context of {name!r}", ARGUMENTS_LIMIT, args, text)
    return text


class Registry:
    """The functions of one app, by name."""

    def __init__(self) -> None:
        self.actions: dict[str, Action[Any, Any, Any]] = {}
        self.mutations: dict[str, Mutation[Any, Any]] = {}

    def add_action(self, action: Action[Any, Any, Any]) -> None:
        """Register. Raises ValueError for a name that is taken."""
        for name in (action.name, *action.aliases):
            self._check_free(name)
        for name in (action.name, *action.aliases):
            self.actions[name] = action

    def add_mutation(self, mutation: Mutation[Any, Any]) -> None:
        """Register. Raises ValueError for a name that is taken."""
        self._check_free(mutation.name)
        self.mutations[mutation.name] = mutation

    def _check_free(self, name: str) -> None:
        taken = self.actions.get(name) or self.mutations.get(name)
        if taken is not None:
            raise ValueError(
                f"{name!r} is registered already, as {taken!r}: give one of the two another name with name=..."
            )

    def find_action(self, given: object) -> tuple[str, Action[Any, Any, Any] | None]:
        """
        Return the name and the action that *given* means; of a name that another service knows, only the name.

        Raises:
            InvalidArguments: It is no action.
            UnknownFunction: It is not registered with this app.
        """
        if isinstance(given, str):
            check_name("action", given)
            if given in self.mutations:
                raise InvalidArguments(function=given, problem="it is a mutation; what is run and retried is an action")
            action = self.actions.get(given)
            return (given, None) if action is None else (action.name, action)
        if isinstance(given, Mutation):
            raise InvalidArguments(function=given.name, problem="it is a mutation; what is retried is an action")
        if isinstance(given, Action):
            if self.actions.get(given.name) is not given:
                raise UnknownFunction(name=given.name, remedy="it belongs to another App; use the retrier of that one")
            return given.name, given
        if callable(given):
            raise UnknownFunction(name=_display(given), remedy="decorate it with @app.action")
        raise InvalidArguments(
            function=_display(given), problem="action must be a decorated function, a bind, or a registered name"
        )

    def find_callback(self, given: object) -> tuple[str, Mutation[Any, Any] | None]:
        """
        Return the name and the mutation that ``on_complete`` means.

        Raises:
            InvalidArguments: It is no mutation, or requires what a callback is not given.
            UnknownFunction: It is not registered with this app.
        """
        if isinstance(given, str):
            check_name("on_complete", given)
            if given in self.actions:
                raise InvalidArguments(function=given, problem="on_complete must be a mutation, and this is an action")
            mutation = self.mutations.get(given)
        elif isinstance(given, Action | Bound):
            name = given.name if isinstance(given, Action) else given.action.name
            raise InvalidArguments(function=name, problem="on_complete must be a mutation, and this is an action")
        else:
            mutation = self.find_mutation(given)
        if mutation is None:
            return str(given), None
        mutation.check_as_callback()
        return mutation.name, mutation

    def find_mutation(self, given: object) -> Mutation[Any, Any]:
        """Return the mutation that *given* means. Raises `UnknownFunction` or `InvalidArguments`."""
        if isinstance(given, Mutation):
            if self.mutations.get(given.name) is not given:
                raise UnknownFunction(name=given.name, remedy="it belongs to another App")
            return given
        if isinstance(given, Action):
            raise InvalidArguments(function=given.name, problem="it is an action, and a mutation is wanted here")
        if isinstance(given, str) and given in self.mutations:
            return self.mutations[given]
        if isinstance(given, str) or callable(given):
            raise UnknownFunction(name=_display(given), remedy="decorate it with @app.mutation")
        raise InvalidArguments(function=_display(given), problem="a mutation, or the name of one, is wanted here")


def _display(given: object) -> str:
    return given if isinstance(given, str) else getattr(given, "__qualname__", None) or f"{given!r:.60}"


def name_of(function: Callable[..., Any], given: str | None, kind: str) -> str:
    """
    Return the name to register a function under: ``module:qualname`` unless one is given.

    In a script the module is what other processes import it as, never ``__main__``.

    Raises:
        ValueError: A lambda; or, without a name, a function that others could not find by one.
    """
    if isinstance(function, _Registered | type) or not callable(function):
        raise ValueError(  # noqa: TRY004 - the contract knows one error for what cannot be registered
            f"{function!r:.80} cannot be registered as {kind}: decorate a plain function"
        )
    qualname = getattr(function, "__qualname__", None)
    if qualname is None:
        raise ValueError(f"{function!r:.80} cannot be registered as {kind}: it has no name; wrap it in a def")
    if "<lambda>" in qualname:
        raise ValueError(f"a lambda cannot be registered as {kind}: it has no name; use def")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"{qualname!r} cannot be registered as {kind}: it is a generator; return the value instead")
    if given is not None:
        check_name("name", given)
        return given
    if "<locals>" in qualname:
        raise ValueError(
            f"{qualname!r} cannot be registered as {kind}: it is defined inside a function, so that another process "
            "could not find it; move it to the top of the module, or give it a name of its own with name=..."
        )
    return f"{_module_of(function)}:{qualname}"


def _module_of(function: Callable[..., Any]) -> str:
    module = str(function.__module__)
    if module != "__main__":
        return module
    main = sys.modules.get("__main__", types.ModuleType("__main__"))
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "interactive"


def check_exception_types(name: str, given: Any) -> tuple[type[BaseException], ...]:
    """Return *given* as a tuple of exception types. Raises TypeError."""
    types_ = (given,) if isinstance(given, type) else given
    if not isinstance(types_, tuple | list | set | frozenset) or not all(
        isinstance(one, type) and issubclass(one, BaseException) for one in types_
    ):
        raise TypeError(f"{name} must be an exception type, or several, not {given!r}")
    return tuple(types_)


def check_mutation_options(isolation: object, timeout_ms: object) -> None:
    """Check what ``@app.mutation`` was given."""
    if isolation not in {"serializable", "read committed"}:
        raise ValueError(f"isolation must be 'serializable' or 'read committed', not {isolation!r}")
    check_number("timeout_ms", timeout_ms, positive=True)
