"""Which commands there are, and what the whole program does with an error."""

import sys
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..config import configure_logging, logger
from ..errors import RetrierError
from . import demo, doctor, runs, schema, worker
from .loading import WrongUsage
from .terminal import clean, complain, say


class _Commands(TyperGroup):
    """Turns what is raised on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        configure_logging(always_show=True)
        cause: Exception
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except WrongUsage as error:
            code, cause = 2, error
        except (RetrierError, OSError) as error:  # OSError: a file that this user may not open, for instance
            code, cause = 1, error
        logger.debug("the command failed", exc_info=cause)
        complain(f"Error: {clean(str(cause))}")
        raise typer.Exit(code)


cli = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 the answer is no (not found, not completed, ...), 2 wrong usage.",
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it
    if wanted:
        say(f"action-retrier {metadata.version('action-retrier')}")
        raise typer.Exit


@cli.callback()
def program(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Durable retries for calls to unreliable things, in your own database."""


def _add(name: str, function: Callable[..., None], *examples: str) -> None:
    lines = "\n".join(f"  action-retrier {name} {example}".rstrip() for example in examples)
    cli.command(name, epilog=f"\b\nExamples:\n{lines}" if len(examples) > 1 else f"\b\nExample:\n{lines}")(function)


_add("worker", worker.worker, "shop.jobs:app", "shop.jobs:app --import shop.mail --concurrency 20 --processes 4")
_add("list", runs.list_, "--state failed", "--callback pending --database sqlite:///shop.db --json")
_add("show", runs.show, "01981f0e-6b1c-7aaa-8000-2f1d3c4b5a69")
_add("status", runs.status, "01981f0e-6b1c-7aaa-8000-2f1d3c4b5a69 --json")
_add("cancel", runs.cancel, "01981f0e-6b1c-7aaa-8000-2f1d3c4b5a69", "--action shop.jobs:charge", "--all")
_add("retry", runs.retry, "01981f0e-6b1c-7aaa-8000-2f1d3c4b5a69", "--action shop.jobs:charge", "--all")
_add("cleanup", runs.cleanup, "01981f0e-6b1c-7aaa-8000-2f1d3c4b5a69")
_add("doctor", doctor.doctor, "--database sqlite:///shop.db", "--app shop.jobs:app --json")
_add("migrate", schema.migrate, "--database sqlite:///shop.db", "--sql > schema.sql")
_add("demo", demo.demo, "", "--keep --seed 7")


def main() -> None:
    """Run the command line."""
    try:
        cli()
    except BrokenPipeError:  # the reader of our output has gone
        sys.exit(1)
