"""The options that commands share."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer

from .loading import WrongUsage

Choice = TypeVar("Choice", bound=StrEnum)


# Parsers of our own, because a message names the option and the value, in the words of this library.
def whole(option: str, *, at_least: int | None = None, at_most: int | None = None) -> Callable[[Any], int]:
    """Return the parser of an option that is a whole number."""

    def parse(given: Any) -> int:
        try:
            number = int(str(given).encode("ascii"))  # other scripts have digits too
        except ValueError as error:
            raise WrongUsage(f"{option} must be a whole number, not {given!r}") from error
        if at_least is not None and number < at_least:
            raise WrongUsage(f"{option} must be at least {at_least}, not {number}")
        if at_most is not None and number > at_most:
            raise WrongUsage(f"{option} must be at most {at_most}, not {number}")
        return number

    return parse


def milliseconds(option: str) -> Callable[[Any], float]:
    """Return the parser of an option that is a duration; its range is checked by whoever takes it."""

    def parse(given: Any) -> float:
        try:
            return float(given)
        except ValueError as error:
            raise WrongUsage(f"{option} must be a number of milliseconds, not {given!r}") from error

    return parse


def one_of(option: str, kind: type[Choice]) -> Callable[[Any], Choice]:
    """Return the parser of an option that is a member of *kind*."""

    def parse(given: Any) -> Choice:
        try:
            return kind(given)
        except ValueError as error:
            raise WrongUsage(f"{option} must be one of {', '.join(kind)}, not {given!r}") from error

    return parse


def choices(kind: type[StrEnum]) -> str:
    """Return how the help shows what can be chosen."""
    return f"[{'|'.join(kind)}]"


AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:APP", help="The App whose database it is.", show_default=False),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="The database: sqlite:///relative.db, sqlite:////absolute.db or postgresql://.... Default: that of --app, "
        "else $ACTION_RETRIER_DATABASE_URL, else sqlite:///action_retrier.db.",
        show_default=False,
    ),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="The installation in that database. Default: that of --app, else default.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunIdArgument = Annotated[str, typer.Argument(metavar="ID", help="The run's id.", show_default=False)]
OptionalRunIdArgument = Annotated[str | None, typer.Argument(metavar="ID", help="The run's id.", show_default=False)]
ActionOption = Annotated[
    str | None, typer.Option("--action", metavar="NAME", help="Only runs of this action.", show_default=False)
]
QueueOption = Annotated[
    str | None, typer.Option("--queue", metavar="NAME", help="Only runs in this queue.", show_default=False)
]
AllOption = Annotated[bool, typer.Option("--all", help="All runs of the namespace.")]
