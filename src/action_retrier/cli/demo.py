"""``demo``."""

from typing import Annotated

import typer

from .loading import WrongUsage
from .options import JsonOption, whole


def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the database and the logs, to be looked at.")] = False,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", parser=whole("--seed"), help="Decides which deliveries fail, and how."),
    ] = 1,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            help="Use this database, and keep it. Default: a temporary one.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """
    Show the library at work.

    Several hundred webhooks are delivered against all odds, a worker is killed meanwhile, and then
    every promise is verified.
    """
    from ..demo.run import run_demo  # noqa: PLC0415 - only the demo needs it

    try:
        code = run_demo(keep=keep, seed=seed, json=json, database=database)
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    raise typer.Exit(code)
