"""The functions of one app, by name."""

from typing import Any

from ._functions import Action, Bound, Mutation
from ._policy import check_name
from .errors import InvalidArguments, UnknownFunction


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
