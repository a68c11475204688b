"""Errors: one root, picklable, telling. Logging: levels, handlers, and what is never written."""

import copy
import gc
import logging
import pickle
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import action_retrier
from action_retrier import (
    App,
    Call,
    DatabaseUnavailable,
    IdempotencyConflict,
    InvalidArguments,
    InvalidContext,
    MutationCtx,
    NonRetryableError,
    PayloadTooLarge,
    RetrierError,
    RetryAfter,
    RunInProgress,
    RunNotFound,
    RunSucceeded,
    SchemaMismatch,
    SyncActionCtx,
    SyncActionRetrier,
    UnknownFunction,
)

NAMES = [
    "RunNotFound",
    "RunInProgress",
    "RunSucceeded",
    "InvalidArguments",
    "IdempotencyConflict",
    "UnknownFunction",
    "PayloadTooLarge",
    "InvalidContext",
    "SchemaMismatch",
    "DatabaseUnavailable",
]
CANARY = "canary-7f3a9c-tweet"


# -- errors ------------------------------------------------------------------------------------------------------------


def undecorated() -> None: ...


async def provoke(api: Any, name: str, folder: Path) -> tuple[RetrierError, str]:
    """Make the error *name* happen; it, and the offending value that it must mention."""

    @api.app.action(name="charge")
    def charge(order_id: int = 7, text: str = "") -> None: ...

    run_id = await api.run(api.app, charge, idempotency_key="key-7")
    if name == "RunSucceeded":
        async with api.worker() as worker:
            await worker.until_idle()
    elsewhere = App(f"sqlite:///{folder / 'elsewhere.db'}", auto_migrate=False)
    nowhere = App(f"sqlite:///{folder / 'no-such-folder' / 'runs.db'}")
    provocations: dict[str, tuple[Any, str]] = {
        "RunNotFound": (lambda: api.status(api.app, "no-such-run"), "no-such-run"),
        "RunInProgress": (lambda: api.cleanup(api.app, run_id), run_id),
        "RunSucceeded": (lambda: api.retry(api.app, run_id), run_id),
        "InvalidArguments": (lambda: api.run(api.app, charge, {"order_id": "seven"}), "seven"),
        "IdempotencyConflict": (
            lambda: api.run(api.app, charge, {"order_id": 8}, idempotency_key="key-7"),
            "key-7",
        ),
        "UnknownFunction": (lambda: api.run(api.app, undecorated), "undecorated"),
        "PayloadTooLarge": (lambda: api.run(api.app, charge, {"text": "x" * 2_000_000}), ""),
        "InvalidContext": (lambda: api.run(object(), charge), "object"),
        "SchemaMismatch": (lambda: api.call(SyncActionRetrier(elsewhere).list, elsewhere), "migrate"),
        "DatabaseUnavailable": (lambda: api.call(SyncActionRetrier(nowhere).list, nowhere), ""),
    }
    call, offending = provocations[name]
    with pytest.raises(getattr(action_retrier, name)) as failure:
        await call()
    return failure.value, offending


@pytest.mark.parametrize("name", NAMES)
def test_every_error_has_the_one_root(name):
    """One root, `RetrierError`."""
    error = getattr(action_retrier, name)
    assert issubclass(error, RetrierError)
    assert error is not RetrierError
    assert error.__doc__


def test_the_root_is_an_ordinary_exception():
    """`except Exception` catches it."""
    assert issubclass(RetrierError, Exception)


@pytest.mark.parametrize("name", NAMES)
async def test_each_error_says_the_offending_value(api, tmp_path, name):
    """Each says what was wrong, with the offending value, and what to do."""
    error, offending = await provoke(api, name, tmp_path)
    message = str(error)
    assert len(message.split()) >= 4, "a sentence, not a word"
    assert offending in message.replace(",", "").replace("_", "") or offending in message
    assert "\n\n" not in message


@pytest.mark.parametrize("name", NAMES)
async def test_each_error_survives_pickle_and_copy(api, tmp_path, name):
    """Errors cross process borders: type, message and attributes survive."""
    error, _ = await provoke(api, name, tmp_path)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


@pytest.mark.parametrize("error", [RetryAfter(1_500, "slow down"), RetryAfter(5), NonRetryableError("no more")])
def test_what_an_action_may_raise_survives_pickle_and_copy(error):
    """`RetryAfter` and `NonRetryableError` may come from a process pool of the user's."""
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


@pytest.mark.parametrize("delay_ms", [-1, float("nan"), float("inf"), "5", None, True], ids=str)
def test_a_wrong_delay_of_retry_after_is_refused(delay_ms):
    """Negative, NaN or infinite values are refused where they come in."""
    with pytest.raises((ValueError, TypeError), match="delay_ms"):
        RetryAfter(delay_ms)


@pytest.mark.parametrize("name", ["RunNotFound", "RunInProgress", "RunSucceeded"])
async def test_an_error_about_a_run_holds_its_id(api, tmp_path, name):
    """Each error has keyword attributes."""
    error, offending = await provoke(api, name, tmp_path)
    assert error.run_id == offending


async def test_the_errors_tell_them_apart(api):
    """None of the errors is another one: `except RunNotFound` catches nothing else."""
    classes = [getattr(action_retrier, name) for name in NAMES]
    for one in classes:
        assert [other for other in classes if issubclass(other, one)] == [one]


def test_a_file_that_is_no_database_is_a_retrier_error(tmp_path):
    """One root, whatever is wrong with the file."""
    (tmp_path / "text.db").write_bytes(b"this is no database, but long enough to look like a file of one\n" * 100)
    app = App(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(RetrierError):
        SyncActionRetrier(app).list(app)
    assert (tmp_path / "text.db").read_bytes().startswith(b"this is no database")


def test_a_database_that_comes_back_is_used_again(tmp_path):
    """`DatabaseUnavailable` is about this call, not about the App for ever."""
    app = App(f"sqlite:///{tmp_path / 'late' / 'runs.db'}")
    with pytest.raises(DatabaseUnavailable):
        SyncActionRetrier(app).list(app)
    (tmp_path / "late").mkdir()
    with app:
        assert SyncActionRetrier(app).list(app).runs == []


async def test_who_ends_the_transaction_of_a_block_is_told_how_it_ends(api):
    """True of every transaction of ours that user code borrows, be it a callback's or a block's."""

    async def commit() -> None:
        async with api.transaction() as ctx:
            await api.call(ctx.db.execute, "COMMIT")

    with pytest.raises(RuntimeError, match="tried to COMMIT through ctx.db.* leave the block") as failure:
        await commit()
    assert "record" not in str(failure.value)


async def test_an_action_that_has_been_called_is_named(api):
    """Pass the function and its arguments: nothing is stored, and no coroutine is left that nobody awaits."""

    @api.app.action(name="send")
    async def send(to: str) -> None: ...

    with pytest.raises(InvalidArguments, match=r"'send' has been called: pass the function itself.*send\.bind"):
        await api.run(api.app, send("ines"), {"to": "ines"})
    gc.collect()
    assert await api.all_runs() == []


# -- names that nobody here knows --------------------------------------------------------------------------------------


def _sent() -> None: ...


async def test_a_start_by_an_unknown_name_is_warned_of_once(api, caplog):
    """Another service may know it; or it is a typo, and the run would wait in silence. Arguments are not told."""
    api.scripted("done", name="send")
    api.app.mutation(name="sent")(_sent)
    for _ in range(2):
        await api.run(api.app, "sned", {"to": CANARY}, context=CANARY, on_complete="snet")
    async with api.sibling() as producer:  # registers nothing: all that it starts is others'
        await producer.run(producer.app, "sned", {"to": CANARY})

    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    known = "its runs wait for a worker that knows it (registered here: "
    assert told == [
        f"action 'sned' is not registered with this app: {known}send)",
        f"on_complete 'snet' is not registered with this app: {known}sent)",
    ]
    assert CANARY not in str([vars(record) for record in caplog.records])


async def test_what_a_called_action_returns_is_warned_of_as_a_name(api, caplog):
    """`run(app, send("x"))` is a start by name, if `send` returns a string."""

    @api.app.action(name="send")
    def send(to: str) -> str:
        return f"sent to {to}"

    await api.run(api.app, send("ines"))
    assert "action 'sent to ines' is not registered with this app" in caplog.text


# -- levels and handlers -----------------------------------------------------------------------------------------------

SCRIPT = """
import logging
import os
import sys
from pathlib import Path

if len(sys.argv) > 1 and sys.argv[1] == "root":
    logging.basicConfig(stream=sys.stdout, format="LINE %(levelname)s %(name)s %(message)s")
if len(sys.argv) > 1 and sys.argv[1] == "own":
    logging.getLogger("action_retrier").addHandler(logging.StreamHandler(sys.stdout))

from action_retrier import App, SyncActionRetrier

app = App("sqlite:///log.db")
retrier = SyncActionRetrier(app)

@app.action(max_failures=1, initial_backoff_ms=1)
def broken() -> None:
    raise ValueError("no")

@app.action
def fine() -> None: ...

with app, app.worker():
    retrier.wait(app, retrier.run(app, fine), timeout_ms=60_000)
    outcome = retrier.wait(app, retrier.run(app, broken), timeout_ms=60_000)

print(outcome.type)
logger = logging.getLogger("action_retrier")
print(logger.getEffectiveLevel())
print([type(handler).__name__ for handler in logger.handlers if not isinstance(handler, logging.NullHandler)])
print([type(handler).__name__ for handler in logging.getLogger().handlers])
"""


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("DEBUG", logging.DEBUG),
        ("debug", logging.DEBUG),
        ("INFO", logging.INFO),
        ("Info", logging.INFO),
        ("WARN", logging.WARNING),
        ("warn", logging.WARNING),
        ("ERROR", logging.ERROR),
        ("eRRoR", logging.ERROR),
    ],
)
def test_the_variable_sets_the_level(scripts, value, level):
    """`ACTION_RETRIER_LOG_LEVEL` = `DEBUG`, `INFO` (default), `WARN`, `ERROR`, any case."""
    scripts.write("job.py", SCRIPT)
    out = scripts.run("job.py", ACTION_RETRIER_LOG_LEVEL=value).stdout.splitlines()
    assert out[:2] == ["failed", str(level)]


def test_without_the_variable_the_level_is_info(scripts):
    """... `INFO` (default); and no handler is added."""
    scripts.write("job.py", SCRIPT)
    assert scripts.run("job.py").stdout.splitlines() == ["failed", str(logging.INFO), "[]", "[]"]


def test_another_value_warns_and_means_info(scripts):
    """... another value warns and means INFO; `run` works all the same."""
    scripts.write("job.py", SCRIPT)
    done = scripts.run("job.py", ACTION_RETRIER_LOG_LEVEL="LOUD")
    assert done.stdout.splitlines()[:2] == ["failed", str(logging.INFO)]
    assert "LOUD" in done.stderr


def test_each_level_writes_less_than_the_one_before(scripts):
    """DEBUG logs more internal information, ERROR means even fewer logs."""
    scripts.write("job.py", SCRIPT)
    counts = [
        len(scripts.run("job.py", ACTION_RETRIER_LOG_LEVEL=level).stderr.splitlines())
        for level in ("DEBUG", "INFO", "WARN", "ERROR")
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[3] > 0


def test_with_the_variable_and_no_handler_one_is_added_on_stderr(scripts):
    """If the variable is set and no handler is configured anywhere, one is added on stderr."""
    scripts.write("job.py", SCRIPT)
    done = scripts.run("job.py", ACTION_RETRIER_LOG_LEVEL="DEBUG")
    _, _, own, root = done.stdout.splitlines()
    assert "Handler" in own + root
    assert done.stderr
    assert "--- Logging error ---" not in done.stderr


@pytest.mark.parametrize("where", ["root", "own"])
def test_with_a_handler_of_the_users_none_is_added(scripts, where):
    """... and *no handler is configured anywhere*."""
    scripts.write("job.py", SCRIPT)
    done = scripts.run("job.py", where, ACTION_RETRIER_LOG_LEVEL="DEBUG")
    *logged, _, own, root = done.stdout.splitlines()
    assert own.count("Handler'") + root.count("Handler'") == 1
    assert done.stderr == ""
    assert "failed" in logged
    assert len(logged) > 1


def test_everything_is_logged_under_one_name(scripts):
    """The logger is the standard library's `action_retrier`: itself and its children."""
    scripts.write("job.py", SCRIPT)
    done = scripts.run("job.py", "root", ACTION_RETRIER_LOG_LEVEL="DEBUG")
    lines = [line for line in done.stdout.splitlines() if line.startswith("LINE")]
    names = {line.split()[2].split(".")[0] for line in lines}
    assert "action_retrier" in names
    assert names <= {"action_retrier", "asyncio"}


# -- what is never logged ----------------------------------------------------------------------------------------------


async def test_arguments_and_results_are_never_logged(api, caplog, gate):
    """Arguments, results and connection strings are never logged, at any level, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="action_retrier")

    @api.app.action(name="echo", max_failures=1)
    def echo(secret: str, *, fail: bool = False) -> dict[str, str]:
        if fail:
            raise ValueError("no")
        return {"result": secret}

    @api.app.action(name="unserialisable")
    def unserialisable(secret: str):
        return {"result": secret, "object": object()}

    @api.app.action(name="strict", max_failures=1)
    def strict(secret: int) -> None: ...

    @api.app.action(name="slow", attempt_timeout_ms=1_000, max_failures=0)
    async def slow(secret: str) -> None:
        await gate.wait_async()

    @api.app.mutation(name="called_back")
    def called_back(ctx: MutationCtx, result: Any, context: str) -> None:
        raise ValueError("the callback fails, too")

    @api.app.mutation(name="wrong_context")
    def wrong_context(ctx: MutationCtx, context: int) -> None: ...

    async with api.sibling() as other:  # starts what it does not know: only JSON is checked
        mismatch = await other.run(other.app, "strict", {"secret": CANARY}, context=CANARY)
        misled = await other.run(other.app, "echo", {"secret": CANARY}, on_complete="wrong_context", context=CANARY)
    secret = {"secret": CANARY}
    calls = [
        Call(echo, secret, context=CANARY, on_complete=called_back),
        Call(echo, secret | {"fail": True}, context=CANARY, on_complete=called_back),
        Call(unserialisable, secret, context={CANARY: CANARY}),
        Call("nobody.knows", secret, context=CANARY),
    ]
    run_ids = await api.run_many(api.app, calls)
    slow_id = await api.run(api.app, slow, secret)
    for wrong in ({"secret": [CANARY]}, {CANARY: 1}, {"secret": CANARY * 100_000}):
        with pytest.raises(RetrierError):
            await api.run(api.app, echo, wrong)
    canceled = await api.run_after(api.app, 10_000_000, echo, secret)
    await api.cancel(api.app, canceled)

    async with api.worker() as worker:
        await gate.until_reached()
        api.clock.advance(1_000)
        for run_id in (*run_ids[:3], mismatch, misled, slow_id):
            await api.result(worker, run_id)
        api.clock.advance(61_000)
        await worker.until_idle()
        await api.cleanup(api.app, run_ids[1], discard_callback=True)
    await api.get(api.app, mismatch)

    assert [record for record in caplog.records if record.name.startswith("action_retrier")]
    told = [f"{record.getMessage()} {vars(record)} {logging.Formatter().format(record)}" for record in caplog.records]
    assert [line for line in told if CANARY in line] == []
    assert [line for line in told if "sqlite:///" in line] == []


def test_nothing_is_told_on_stderr_either(scripts):
    """... in a real process with the variable set to DEBUG."""
    scripts.write(
        "job.py",
        f"""
        from action_retrier import App, SyncActionCtx, SyncActionRetrier

        app = App("sqlite:///log.db")
        retrier = SyncActionRetrier(app, initial_backoff_ms=1)

        @app.action
        def echo(ctx: SyncActionCtx, secret: str) -> str:
            ctx.progress(0.5)
            if ctx.attempt == 1:
                raise ValueError("no")
            return secret

        with app, app.worker():
            run_id = retrier.run(app, echo, {{"secret": "{CANARY}"}}, context="{CANARY}")
            print(retrier.wait(app, run_id, timeout_ms=60_000).return_value)
        """,
    )
    done = scripts.run("job.py", ACTION_RETRIER_LOG_LEVEL="DEBUG")
    assert done.stdout.strip() == CANARY
    assert done.stderr
    assert CANARY not in done.stderr
    assert "sqlite:///" not in done.stderr


async def test_an_attempts_failure_is_logged_with_its_run(api, caplog):
    """WARNING a retry, ERROR a final failure, INFO an end: each says which run."""
    caplog.set_level(logging.DEBUG, logger="action_retrier")
    broken = api.scripted(ValueError("no"), max_failures=1, name="broken")
    done = api.scripted("done", name="done")
    failed = await api.run(api.app, broken.action)
    succeeded = await api.run(api.app, done.action)
    async with api.worker() as worker:
        await api.result(worker, failed)
        await api.result(worker, succeeded)

    def levels(run_id: str) -> set[int]:
        return {record.levelno for record in caplog.records if run_id in f"{record.getMessage()} {vars(record)}"}

    assert {logging.WARNING, logging.ERROR} <= levels(failed)
    assert logging.INFO in levels(succeeded)
    assert not {logging.WARNING, logging.ERROR} & levels(succeeded)


async def test_line_breaks_in_an_error_do_not_forge_log_lines(api, caplog):
    """What an action's exception says stays within its line."""
    caplog.set_level(logging.DEBUG, logger="action_retrier")
    broken = api.scripted(ValueError("no\nERROR forged line"), max_failures=1)
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        await api.result(worker, run_id)
    assert not [record for record in caplog.records if re.search(r"(?m)^ERROR forged", record.getMessage())]


# -- errors of the database are the library's own ----------------------------------------------------------------------


async def test_a_retrier_raises_no_error_of_the_driver(api):
    """`except RetrierError` is enough around a call with a handle that was closed under it."""
    done = api.scripted("done")
    async with api.connection() as connection:
        await api.call(connection.close)
        with pytest.raises(RetrierError) as failure:
            await api.run(connection, done.action)
    assert not isinstance(failure.value, sqlite3.Error)
    assert isinstance(failure.value, InvalidContext)


def test_the_exceptions_are_importable_where_they_say_they_are():
    """A traceback's "module.Name" can be imported."""
    for error in (
        RunNotFound,
        RunInProgress,
        RunSucceeded,
        InvalidArguments,
        IdempotencyConflict,
        UnknownFunction,
        PayloadTooLarge,
        InvalidContext,
        SchemaMismatch,
        DatabaseUnavailable,
    ):
        assert pickle.loads(pickle.dumps(error)) is error  # noqa: S301 - our own


def test_a_sync_context_is_exported_for_annotations():
    """`SyncActionCtx` is what users annotate with."""
    assert isinstance(SyncActionCtx, type)
