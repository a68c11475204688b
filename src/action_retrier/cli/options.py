"""The options that commands share."""

from typing import Annotated

import typer

AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:APP", help="The App whose database it is.", show_default=False),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="The database: sqlite:///relative.db or sqlite:////absolute.db. Default: that of --app, "
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
