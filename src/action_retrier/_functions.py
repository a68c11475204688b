"""Registered functions: actions, mutations, and what they are called."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from pydantic_core import ValidationError

from ._codec import ARGUMENTS_LIMIT, NotJSONError, adapter_of, check_size, decode, encode, explain
from ._policy import check_name, check_number
from ._signatures import Signature
from .drivers import Isolation
from .errors import InvalidArguments

P = ParamSpec("P")
B = ParamSpec("B")
R = TypeVar("R")

CALLBACK_PARAMETERS = ("ctx", "run_id", "result", "context")
DEFAULT_MUTATION_TIMEOUT_MS = 5000


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


def unbind(given: object, args: Mapping[str, Any] | None) -> tuple[object, Mapping[str, Any] | None]:
    """Return the function and the arguments that a caller means, who may have passed a bind for both."""
    if not isinstance(given, Bound):
        return given, args
    if args is not None:
        raise TypeError("args must not be given with a bind: it has its own")
    return given.action, given.args


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

    @cached_property
    def _wanted(self) -> frozenset[str]:
        """Which of a callback's arguments the function names."""
        parameters = self.signature.parameters
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            return frozenset(CALLBACK_PARAMETERS)
        return frozenset(CALLBACK_PARAMETERS) & {one.name for one in parameters}

    def callback_arguments(self, *, run_id: str, result: object, context: str | None) -> dict[str, Any]:
        """Return those of the callback's arguments that the function names."""
        wanted = self._wanted
        given: dict[str, Any] = {}
        if "run_id" in wanted:
            given["run_id"] = run_id
        if "result" in wanted:
            given["result"] = result
        if "context" in wanted:
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
                text = encode(adapter_of(Any), context)
            except NotJSONError as error:
                raise InvalidArguments(function=name, problem=f"JSON cannot carry context: {error}") from None
    check_size(f"arguments and context of {name!r}", ARGUMENTS_LIMIT, args, text)
    return text


def name_of(function: Callable[..., Any], given: str | None, kind: str) -> str:
    """
    Return the name to register a function under: ``module:qualname`` unless one is given.

    In a script the module is what other processes import it as, never ``__main__``.

    Raises:
        ValueError: A lambda, a generator, a method; or, without a name, a function that others could not find by one.
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
    if _is_method(function, qualname):
        raise ValueError(
            f"{qualname!r} is a method: {kind} has no object to be called on; register a function at module level"
        )
    if given is not None:
        check_name("name", given)
        return given
    if "<locals>" in qualname:
        raise ValueError(
            f"{qualname!r} cannot be registered as {kind}: it is defined inside a function, so that another process "
            "could not find it; move it to the top of the module, or give it a name of its own with name=..."
        )
    return f"{_module_of(function)}:{qualname}"


def _is_method(function: Callable[..., Any], qualname: str) -> bool:
    if inspect.ismethod(function):
        return True
    if "." not in qualname.rpartition("<locals>.")[2]:
        return False  # not defined in the body of a class
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False  # Signature says so
    return next(iter(parameters), None) in {"self", "cls"}


def _module_of(function: Callable[..., Any]) -> str:
    module = str(function.__module__)
    if module != "__main__":
        return module
    main = sys.modules.get("__main__", types.ModuleType("__main__"))
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    file = getattr(main, "__file__", None)
    if not file:
        return "interactive"
    # `python FOLDER` runs its __main__.py.
    path = Path(file)
    return path.stem if path.stem != "__main__" else path.resolve().parent.stem


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
