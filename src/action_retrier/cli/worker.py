"""``worker``: one process that executes runs, or a supervisor with several."""

import sys
from typing import Annotated

import typer

from .._policy import check_name, check_number
from ..app import DEFAULT_CONCURRENCY, DEFAULT_GRACE_MS
from .loading import WrongUsage, as_usage, load_module, make_app
from .loops import Loop
from .options import DatabaseOption, JsonOption, NamespaceOption, choices, milliseconds, one_of, whole
from .process import WorkerProcess
from .supervisor import Supervisor

Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Import this too: it registers functions. Repeatable."),
]
Queues = Annotated[
    list[str] | None, typer.Option("--queue", metavar="NAME", help="Only this queue. Repeatable. Default: all.")
]


def worker(
    target: Annotated[
        str | None, typer.Argument(metavar="MODULE:APP", help="Where the App is, such as shop.jobs:app.")
    ] = None,
    *,
    imports: Imports = None,
    concurrency: Annotated[
        int,
        typer.Option(
            metavar="N", parser=whole("--concurrency", at_least=1), help="How many attempts a process executes at once."
        ),
    ] = DEFAULT_CONCURRENCY,
    processes: Annotated[
        int,
        typer.Option(
            metavar="P",
            parser=whole("--processes", at_least=1),
            help="How many processes; above 1 a supervisor keeps them running.",
        ),
    ] = 1,
    queues: Queues = None,
    grace_ms: Annotated[
        float,
        typer.Option(
            metavar="MS",
            parser=milliseconds("--grace-ms"),
            help="On a stop, attempts that have begun may end for so long.",
        ),
    ] = DEFAULT_GRACE_MS,
    loop: Annotated[
        Loop,
        typer.Option(
            metavar=choices(Loop),
            parser=one_of("--loop", Loop),
            help="The event loop. Default: uvloop where it is installed, else asyncio's.",
            show_default=False,
        ),
    ] = Loop.AUTO,
    app: Annotated[str | None, typer.Option("--app", metavar="MODULE:APP", help="The same as the argument.")] = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
    told: Annotated[
        bool, typer.Option("--told", hidden=True, help="Another one has said which database it is.")
    ] = False,
) -> None:
    """
    Execute runs, until SIGTERM or SIGINT.

    Then nothing new begins, and what has begun may end. A second signal ends that grace time, a
    third one the process. Modules are looked for in the current directory first. The tables, and
    a SQLite file, are created if need be.
    """
    name = _one_of(target, app)
    with as_usage():
        check_number("--grace-ms", grace_ms)
        for queue in queues or []:
            check_name("--queue", queue)
    if processes > 1:
        arguments = ["--concurrency", str(concurrency), "--grace-ms", str(grace_ms), "--loop", loop]
        arguments += [one for module in imports or [] for one in ("--import", module)]
        arguments += [one for queue in queues or [] for one in ("--queue", queue)]
        arguments += [] if database is None else ["--database", database]
        arguments += [] if namespace is None else ["--namespace", namespace]
        arguments += ["--json"] if json else []
        command = [sys.executable, "-m", "action_retrier", "worker", name, "--processes", "1", *arguments]
        command += ["--supervised"]
        raise typer.Exit(Supervisor(command, processes, later=["--told"], grace_ms=grace_ms, json=json).run())
    found = make_app(name, database, namespace)
    for module in imports or []:
        load_module(module)
    process = WorkerProcess(
        found,
        concurrency=concurrency,
        queues=queues or None,
        grace_ms=grace_ms,
        loop=loop,
        json=json,
        supervised=supervised,
        told=told,
    )
    process.run()


def _one_of(target: str | None, app: str | None) -> str:
    if target is not None and app is not None and target != app:
        raise WrongUsage(f"the argument names {target} and --app names {app}: name one App")
    name = target if target is not None else app
    if name is None:
        raise WrongUsage("name the App, as MODULE:APP: action-retrier worker shop.jobs:app")
    return name
