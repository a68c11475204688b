"""The functions of one app, by name."""

import inspect
from collections.abc import Mapping
from typing import Any

from ._functions import Action, Bound, Mutation
from ._policy import check_name
from .config import logger
from .errors import InvalidArguments, UnknownFunction

_NAMES_TOLD = 10


class Registry:
    """The functions of one app, by name."""

    def __init__(self) -> None:
        self.actions: dict[str, Action[Any, Any, Any]] = {}
        self.mutations: dict[str, Mutation[Any, Any]] = {}
        self._warned_of: set[tuple[str, str]] = set()

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
                f"{name!r} is registered already, for {taken.kind} {_place(taken)}: "
                "give one of the two another name with name=..."
            )

    def find_action(self, given: object, *, starts: bool = True) -> tuple[str, Action[Any, Any, Any] | None]:
        """
        Return the name and the action that *given* means; of a name that another service knows, only the name.

        If that *starts* a run, such a name is warned of: it may also be a typo, or what a called action returned.

        Raises:
            InvalidArguments: It is no action.
            UnknownFunction: It is not registered with this app.
        """
        if isinstance(given, str):
            check_name("action", given)
            if given in self.mutations:
                raise InvalidArguments(function=given, problem="it is a mutation; what is run and retried is an action")
            action = self.actions.get(given)
            if action is not None:
                return action.name, action
            if starts:
                self._warn_of_unknown("action", given, self.actions)
            return given, None
        if isinstance(given, Mutation):
            raise InvalidArguments(function=given.name, problem="it is a mutation; what is retried is an action")
        if isinstance(given, Action):
            if self.actions.get(given.name) is not given:
                raise UnknownFunction(name=given.name, remedy="it belongs to another App; use the retrier of that one")
            return given.name, given
        if callable(given):
            raise UnknownFunction(name=_display(given), remedy=_remedy(given, "@app.action"))
        if inspect.iscoroutine(given):
            given.close()  # nobody will await it, and Python need not warn of that as well
            raise InvalidArguments(
                function=given.__qualname__,
                problem=f"{given.__name__!r} has been called: pass the function itself and its arguments, "
                f"or {given.__name__}.bind(...)",
            )
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
            name = str(given)
            self._warn_of_unknown("on_complete", name, self.mutations)
            return name, None
        mutation.check_as_callback()
        return mutation.name, mutation

    def _warn_of_unknown(self, what: str, name: str, registered: Mapping[str, object]) -> None:
        if not registered or (what, name) in self._warned_of:
            return  # an app that registers nothing of the kind only starts what other services run
        self._warned_of.add((what, name))
        known = sorted(registered)
        logger.warning(
            "%s %r is not registered with this app: its runs wait for a worker that knows it (registered here: %s)",
            what,
            name,
            ", ".join([*known[:_NAMES_TOLD], *(["…"] if len(known) > _NAMES_TOLD else [])]),
            extra={what: name},
        )

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
            raise UnknownFunction(name=_display(given), remedy=_remedy(given, "@app.mutation"))
        raise InvalidArguments(function=_display(given), problem="a mutation, or the name of one, is wanted here")


def _place(registered: "Action[Any, Any, Any] | Mutation[Any, Any]") -> str:
    """Say where the function stands, as far as Python knows."""
    function = inspect.unwrap(registered.function)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", repr(registered))
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


def _remedy(given: object, decorator: str) -> str:
    if getattr(given, "__name__", None) == "<lambda>":
        return f"no other process could find a lambda by its name: make it a def, and decorate that with {decorator}"
    return f"decorate it with {decorator}"


def _display(given: object) -> str:
    return given if isinstance(given, str) else getattr(given, "__qualname__", None) or f"{given!r:.60}"
