"""The names and signatures that are promised, and that the two colours differ in nothing else."""

import importlib.metadata
import importlib.resources
import inspect
import typing
from typing import Any

import pytest

import action_retrier
from action_retrier import ActionCtx, ActionRetrier, App, Call, SyncActionCtx, SyncActionRetrier
from action_retrier.testing import ManualClock

EXPORTS = [
    *("App", "ActionRetrier", "SyncActionRetrier", "ActionCtx", "SyncActionCtx", "MutationCtx", "Call"),
    *("InProgress", "Completed", "Success", "Failed", "Canceled", "RunStatus", "RunResult"),
    *("Run", "Attempt", "Page", "RunId", "RetryAfter", "NonRetryableError"),
    *("RetrierError", "RunNotFound", "RunInProgress", "RunSucceeded", "InvalidArguments", "IdempotencyConflict"),
    *("UnknownFunction", "PayloadTooLarge", "InvalidContext", "SchemaMismatch", "DatabaseUnavailable"),
]
VERBS = [
    *("run", "run_at", "run_after", "run_many", "status", "wait", "get", "list"),
    *("cancel", "cancel_all", "cleanup", "retry", "retry_all"),
]
OPTIONS = [
    *("initial_backoff_ms", "base", "max_failures", "max_backoff_ms", "jitter", "attempt_timeout_ms", "deadline_ms"),
    *("idempotency_key", "priority", "queue"),
]
NO_DEFAULT = inspect.Parameter.empty


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def shape(function: Any) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults of the parameters."""
    return [(it.name, it.kind, it.default) for it in inspect.signature(function).parameters.values()]


# -- exports -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPORTS)
def test_the_promised_names_are_exported(name):
    """`from action_retrier import ...`."""
    assert name in action_retrier.__all__
    assert hasattr(action_retrier, name)


@pytest.mark.parametrize("name", EXPORTS)
def test_every_exported_class_has_a_docstring(name):
    """Public: documented."""
    exported = getattr(action_retrier, name)
    if isinstance(exported, type):
        assert exported.__doc__


def test_a_star_import_gives_what_all_says():
    """`__all__` holds nothing that is not there, and nothing twice."""
    assert len(action_retrier.__all__) == len(set(action_retrier.__all__))
    for name in action_retrier.__all__:
        getattr(action_retrier, name)


def test_the_package_is_typed():
    """Fully typed (`py.typed`)."""
    assert importlib.resources.files("action_retrier").joinpath("py.typed").is_file()


def test_the_distribution_and_its_command_have_the_promised_name():
    """Distribution and CLI `action-retrier`."""
    (command,) = (
        it for it in importlib.metadata.distribution("action-retrier").entry_points if it.group == "console_scripts"
    )
    assert command.name == "action-retrier"


# -- the two facades ---------------------------------------------------------------------------------------------------


def test_the_two_facades_have_the_same_names():
    """`ActionRetrier` (async) and `SyncActionRetrier` (same names, blocking)."""
    assert public(ActionRetrier) == public(SyncActionRetrier)
    assert public(ActionRetrier) >= set(VERBS)


def test_the_two_facades_are_made_alike():
    """`ActionRetrier(app, *, initial_backoff_ms=250, base=2, max_failures=4, ...)`."""
    assert shape(ActionRetrier) == shape(SyncActionRetrier)


@pytest.mark.parametrize("verb", VERBS)
def test_the_two_facades_have_the_same_signatures(verb):
    """Same names, same parameters, same results: only the colour differs."""
    ours, theirs = getattr(ActionRetrier, verb), getattr(SyncActionRetrier, verb)
    assert shape(ours) == shape(theirs)
    assert inspect.signature(ours).return_annotation == inspect.signature(theirs).return_annotation


@pytest.mark.parametrize("verb", VERBS)
def test_one_is_awaited_and_the_other_blocks(verb):
    """Async, and blocking."""
    assert inspect.iscoroutinefunction(getattr(ActionRetrier, verb))
    assert not inspect.iscoroutinefunction(getattr(SyncActionRetrier, verb))


@pytest.mark.parametrize("verb", VERBS)
def test_the_two_facades_have_the_same_docstrings(verb):
    """Each is documented where it stands, in the same words."""
    assert first_line(getattr(ActionRetrier, verb))
    assert first_line(getattr(ActionRetrier, verb)) == first_line(getattr(SyncActionRetrier, verb))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("facade", [ActionRetrier, SyncActionRetrier])
def test_every_annotation_can_be_read(facade, verb):
    """Fully typed: no annotation is missing or broken."""
    function = getattr(facade, verb)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = set(inspect.signature(function).parameters) - {"self"}
    assert set(hints) >= parameters | {"return"}


def test_the_two_contexts_have_the_same_names():
    """An `ActionCtx` (`SyncActionCtx` in a `def` action)."""
    assert public(ActionCtx) == public(SyncActionCtx)
    assert public(ActionCtx) >= {"run_mutation", "canceled", "stop_reason", "raise_if_canceled", "progress"}
    assert shape(ActionCtx.progress) == shape(SyncActionCtx.progress)
    assert shape(ActionCtx.run_mutation) == shape(SyncActionCtx.run_mutation)
    assert inspect.iscoroutinefunction(ActionCtx.run_mutation)
    assert not inspect.iscoroutinefunction(SyncActionCtx.run_mutation)


@pytest.mark.parametrize("name", ["run_mutation", "run_action", "run_worker"])
def test_an_apps_blocking_twins_have_the_same_signatures(name):
    """`app.run_mutation_sync`, `app.run_action_sync`, `app.run_worker_sync` block."""
    ours, theirs = getattr(App, name), getattr(App, f"{name}_sync")
    assert shape(ours) == shape(theirs)
    assert inspect.iscoroutinefunction(ours)
    assert not inspect.iscoroutinefunction(theirs)
    assert first_line(ours)
    assert first_line(theirs)


# -- documented signatures ---------------------------------------------------------------------------------------------


def parameter(function: Any, name: str) -> inspect.Parameter:
    return inspect.signature(function).parameters[name]


def takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(it.kind is it.VAR_KEYWORD for it in parameters.values())


@pytest.mark.parametrize("facade", [ActionRetrier, SyncActionRetrier])
@pytest.mark.parametrize(
    ("verb", "positional"),
    [
        ("run", ["ctx", "action", "args"]),
        ("run_at", ["ctx", "when", "action", "args"]),
        ("run_after", ["ctx", "delay_ms", "action", "args"]),
    ],
)
def test_the_ways_to_start_have_the_documented_signatures(facade, verb, positional):
    """`run(ctx, action, args=None, *, on_complete=None, context=None, **options)`."""
    function = getattr(facade, verb)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    names = [it.name for it in parameters if it.kind in (it.POSITIONAL_OR_KEYWORD, it.POSITIONAL_ONLY)]
    assert names == positional
    assert parameter(function, "args").default is None
    for name in ("on_complete", "context"):
        assert parameter(function, name).kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter(function, name).default is None
    assert [name for name in OPTIONS if not takes(function, name)] == []


@pytest.mark.parametrize("facade", [ActionRetrier, SyncActionRetrier])
@pytest.mark.parametrize(
    ("verb", "positional", "keywords"),
    [
        ("status", ["ctx", "run_id"], {}),
        ("wait", ["ctx", "run_id"], {"timeout_ms": None}),
        ("get", ["ctx", "run_id"], {}),
        (
            "list",
            ["ctx"],
            {"state": None, "action": None, "queue": None, "callback": None, "limit": 100, "cursor": None},
        ),
        ("cancel", ["ctx", "run_id"], {}),
        ("cancel_all", ["ctx"], {"action": None, "queue": None, "everything": False}),
        ("cleanup", ["ctx", "run_id"], {"discard_callback": False}),
        ("retry", ["ctx", "run_id"], {}),
        ("retry_all", ["ctx"], {"action": None, "queue": None, "everything": False}),
    ],
)
def test_the_other_verbs_have_the_documented_signatures(facade, verb, positional, keywords):
    """The table of section 2."""
    parameters = list(inspect.signature(getattr(facade, verb)).parameters.values())[1:]
    assert [it.name for it in parameters if it.kind is not it.KEYWORD_ONLY] == positional
    assert {it.name: it.default for it in parameters if it.kind is it.KEYWORD_ONLY} == keywords


def test_an_app_is_made_as_documented():
    """`App(database=None, *, namespace="default", auto_migrate=True, retention_days=7)`."""
    database, *rest = inspect.signature(App).parameters.values()
    assert (database.name, database.default) == ("database", None)
    assert all(it.kind is it.KEYWORD_ONLY for it in rest)
    defaults = {it.name: it.default for it in rest}
    assert defaults | {"namespace": "default", "auto_migrate": True, "retention_days": 7} == defaults


def test_a_worker_is_made_as_documented():
    """`app.worker(concurrency=100, queues=None, grace_ms=30_000)`; `app.run_worker(...)`."""
    promised = {"concurrency": 100, "queues": None, "grace_ms": 30_000}
    for function in (App.worker, App.run_worker, App.run_worker_sync):
        assert {name: parameter(function, name).default for name in promised} == promised


def test_a_mutation_is_registered_as_documented():
    """`@app.mutation(name=..., isolation="serializable", timeout_ms=5000)`."""
    assert parameter(App.mutation, "isolation").default == "serializable"
    assert parameter(App.mutation, "timeout_ms").default == 5_000
    assert takes(App.mutation, "name")


@pytest.mark.parametrize("name", ["name", "aliases", "retry_on", "no_retry_on", *OPTIONS])
def test_an_action_takes_its_name_aliases_and_policy(name):
    """`@app.action(name=..., aliases=[...], **policy)`."""
    if name != "idempotency_key":
        assert takes(App.action, name)


@pytest.mark.parametrize("facade", [ActionRetrier, SyncActionRetrier])
def test_a_retrier_takes_only_its_app_by_position(facade):
    """`ActionRetrier(app, *, ...)`."""
    app, *rest = inspect.signature(facade).parameters.values()
    assert app.name == "app"
    assert all(it.kind in (it.KEYWORD_ONLY, it.VAR_KEYWORD) for it in rest)


def test_a_call_takes_action_and_args_by_position():
    """`Call(action, args, **options)`."""
    parameters = list(inspect.signature(Call).parameters.values())
    assert [it.name for it in parameters[:2]] == ["action", "args"]
    assert [name for name in ["on_complete", "context", *OPTIONS] if not takes(Call, name)] == []


def test_a_manual_clock_is_moved_by_hand():
    """`ManualClock(start=None)`; `clock.advance(ms)`; `clock.now()` is an aware datetime."""
    clock = ManualClock()
    before = clock.now()
    assert before.utcoffset() is not None
    clock.advance(1_500)
    assert (clock.now() - before).total_seconds() == 1.5
