"""What operators ask about runs, and do to them: ``list``, ``show``, ``status``, ``cancel``, ``retry``, ``cleanup``."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from .._lifecycle import State
from .._sync_retrier import SyncActionRetrier
from ..app import App
from ..errors import RunInProgress
from ..results import Completed, Failed, RunStatus, Success, to_json
from .hints import hint_at_names
from .loading import WrongUsage, as_usage, find_app
from .options import (
    ActionOption,
    AllOption,
    AppOption,
    DatabaseOption,
    JsonOption,
    NamespaceOption,
    OptionalRunIdArgument,
    QueueOption,
    RunIdArgument,
    choices,
    one_of,
    whole,
)
from .terminal import clean, complain, counted, print_json, say


class CallbackChoice(StrEnum):
    """Which callbacks ``list`` shows."""

    NONE = "none"
    PENDING = "pending"
    DONE = "done"


def list_(
    *,
    state: Annotated[
        State | None,
        typer.Option(
            metavar=choices(State), parser=one_of("--state", State), help="Only runs in this state.", show_default=False
        ),
    ] = None,
    action: ActionOption = None,
    queue: QueueOption = None,
    callback: Annotated[
        CallbackChoice | None,
        typer.Option(
            metavar=choices(CallbackChoice),
            parser=one_of("--callback", CallbackChoice),
            help="Only runs whose callback is in this state.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            metavar="N", parser=whole("--limit", at_least=1, at_most=1000), help="At most so many: 1 to 1000."
        ),
    ] = 100,
    cursor: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where the page before ended.", show_default=False)
    ] = None,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    found = find_app(app, database, namespace)
    retrier = SyncActionRetrier(found)
    with as_usage():
        page = retrier.list(
            found,
            state=None if state is None else state.value,
            action=action,
            queue=queue,
            callback=None if callback is None else callback.value,
            limit=limit,
            cursor=cursor,
        )
    if json:
        say(to_json(page))
    else:
        from .listing import print_runs  # noqa: PLC0415 - a worker needs no tables

        print_runs(page.runs, _now_us(found))
    if not page.runs:
        hint_at_names(action, found, app)
    if page.cursor is not None and not json:
        complain(f"There are more: the same command with --cursor {page.cursor}")


def show(
    run_id: RunIdArgument,
    *,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """
    Tell the story of a run.

    Attempt by attempt, with what went wrong, how long it then waited, and what became of its callback.
    """
    found = find_app(app, database, namespace)
    run = SyncActionRetrier(found).get(found, run_id)
    if json:
        say(to_json(run))
    else:
        from .story import print_story  # noqa: PLC0415 - a worker needs no tables

        print_story(run, _now_us(found))


def status(
    run_id: RunIdArgument,
    *,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """Tell whether a run has ended, and how."""
    found = find_app(app, database, namespace)
    answer = SyncActionRetrier(found).status(found, run_id)
    say(to_json(answer) if json else _in_words(answer))


def cancel(
    run_id: OptionalRunIdArgument = None,
    *,
    action: ActionOption = None,
    queue: QueueOption = None,
    everything: AllOption = False,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """
    Cancel a run, or many.

    Many are all runs in progress that a filter names.
    Exit code 1: the run had already completed, and is unchanged.
    """
    _check_choice(run_id, action=action, queue=queue, everything=everything)
    found = find_app(app, database, namespace)
    retrier = SyncActionRetrier(found)
    if run_id is None:
        with as_usage():
            count = retrier.cancel_all(found, action=action, queue=queue, everything=everything)
        print_json({"canceled": count}) if json else say(f"canceled {counted(count, 'run')}")
        if not count:
            hint_at_names(action, found, app)
        return
    canceled = retrier.cancel(found, run_id)
    if json:
        print_json({"canceled": canceled})
    elif canceled:
        say(f"run {run_id} is canceled")
    else:
        answer = retrier.status(found, run_id)
        complain(f"run {run_id} had already completed, and is unchanged: {_in_words(answer)}")
    if not canceled:
        raise typer.Exit(1)


def retry(
    run_id: OptionalRunIdArgument = None,
    *,
    action: ActionOption = None,
    queue: QueueOption = None,
    everything: AllOption = False,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """
    Start failed or canceled runs afresh.

    One that is named by its ID and backs off is made due now.
    """
    _check_choice(run_id, action=action, queue=queue, everything=everything)
    found = find_app(app, database, namespace)
    retrier = SyncActionRetrier(found)
    if run_id is None:
        with as_usage():
            count = retrier.retry_all(found, action=action, queue=queue, everything=everything)
        print_json({"retried": count}) if json else say(f"started {counted(count, 'run')} afresh")
        if not count:
            hint_at_names(action, found, app)
        return
    with _remedies_of_the_command_line(retrier, found, run_id):
        retrier.retry(found, run_id)
    print_json({"runId": run_id}) if json else say(f"run {run_id} is on its way again")


def cleanup(
    run_id: RunIdArgument,
    *,
    discard_callback: Annotated[
        bool, typer.Option("--discard-callback", help="Also if its callback is pending: then that never runs.")
    ] = False,
    app: AppOption = None,
    database: DatabaseOption = None,
    namespace: NamespaceOption = None,
    json: JsonOption = False,
) -> None:
    """Remove a completed run and its history now."""
    found = find_app(app, database, namespace)
    retrier = SyncActionRetrier(found)
    with _remedies_of_the_command_line(retrier, found, run_id):
        retrier.cleanup(found, run_id, discard_callback=discard_callback)
    print_json({"removed": run_id}) if json else say(f"run {run_id} is removed")


@contextmanager
def _remedies_of_the_command_line(retrier: SyncActionRetrier, app: App, run_id: str) -> Iterator[None]:
    """Where a pending callback is in the way, name the command that gives it up and not the method."""
    try:
        yield
    except RunInProgress as error:
        if not isinstance(retrier.status(app, run_id), Completed):
            raise
        remedy = f"wait until it has committed, or give it up with `action-retrier cleanup {run_id} --discard-callback`"
        raise RunInProgress(run_id=run_id, reason=error.reason, remedy=remedy) from error


def _check_choice(run_id: str | None, *, action: str | None, queue: str | None, everything: bool) -> None:
    filters = action is not None or queue is not None or everything
    if run_id is None and not filters:
        raise WrongUsage("name a run by its ID, or many by --action, --queue or --all")
    if run_id is not None and filters:
        raise WrongUsage("name either one run by its ID, or many by --action, --queue or --all")
    if everything and (action is not None or queue is not None):
        raise WrongUsage("--all means every run: leave it out, or --action and --queue")


def _in_words(status: RunStatus) -> str:
    if not isinstance(status, Completed):
        return "in progress"
    result = status.result
    match result:
        case Success():
            return f"succeeded: {clean(to_json(result.return_value))}"
        case Failed():
            return f"failed: {clean(result.error_type)}: {clean(result.error)}"
    return "canceled"


def _now_us(app: App) -> int:
    return app._engine.clock.now_us()  # noqa: SLF001 - one house
