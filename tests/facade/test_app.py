"""The host: databases, namespaces, registration, names, workers, transactions, mutations, contexts."""

import asyncio
import contextlib
import importlib
import re
import signal
import sqlite3
import sys
import threading

import psycopg
import pytest

from action_retrier import (
    ActionCtx,
    ActionRetrier,
    App,
    Call,
    Canceled,
    Completed,
    Failed,
    IdempotencyConflict,
    InProgress,
    InvalidArguments,
    InvalidContext,
    MutationCtx,
    RunNotFound,
    SchemaMismatch,
    Success,
    SyncActionCtx,
    SyncActionRetrier,
    _incarnation,
)

from .conftest import Worker

ACTIONS = App("sqlite:///registered-at-module-level.db")
"""Holds this module's own functions; its database is never opened."""


@ACTIONS.action
def charge(order_id: int) -> int:
    return order_id * 100


@ACTIONS.action
async def fetch(url: str) -> str:
    return url.upper()


@ACTIONS.mutation
def record(ctx: MutationCtx, text: str) -> str:
    return text


class Mailer:
    @staticmethod
    @ACTIONS.action
    def send(to: str) -> str:
        return to


# -- databases ---------------------------------------------------------------------------------------------------------


def _touch(app: App) -> None:
    with app:
        SyncActionRetrier(app).list(app)


def test_a_relative_url_is_resolved_when_the_app_is_made(tmp_path, monkeypatch):
    """`"sqlite:///relative.db"` (resolved when the App is made)."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    app = App("sqlite:///relative.db")
    monkeypatch.chdir(tmp_path / "second")

    _touch(app)

    assert (tmp_path / "first" / "relative.db").is_file()
    assert not (tmp_path / "second" / "relative.db").exists()


def test_a_relative_url_may_name_a_folder(tmp_path, monkeypatch):
    """Everything after the third slash is the relative path."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    _touch(App("sqlite:///data/runs.db"))
    assert (tmp_path / "data" / "runs.db").is_file()


def test_a_url_with_four_slashes_is_an_absolute_path(tmp_path, monkeypatch):
    """`"sqlite:////absolute.db"`."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _touch(App(f"sqlite:///{tmp_path / 'absolute.db'}"))
    assert (tmp_path / "absolute.db").is_file()


def test_without_a_url_the_environment_variable_counts(tmp_path, monkeypatch):
    """`None` means `$ACTION_RETRIER_DATABASE_URL`."""
    monkeypatch.setenv("ACTION_RETRIER_DATABASE_URL", f"sqlite:///{tmp_path / 'from-environment.db'}")
    _touch(App())
    assert (tmp_path / "from-environment.db").is_file()


def test_a_url_wins_over_the_environment_variable(tmp_path, monkeypatch):
    """The variable stands in for `None` only."""
    monkeypatch.setenv("ACTION_RETRIER_DATABASE_URL", f"sqlite:///{tmp_path / 'from-environment.db'}")
    _touch(App(f"sqlite:///{tmp_path / 'given.db'}"))
    assert (tmp_path / "given.db").is_file()
    assert not (tmp_path / "from-environment.db").exists()


def test_without_a_url_and_a_variable_the_database_is_a_file_here(tmp_path, monkeypatch):
    """... else `sqlite:///action_retrier.db`."""
    monkeypatch.chdir(tmp_path)
    _touch(App())
    assert (tmp_path / "action_retrier.db").is_file()


@pytest.mark.parametrize("url", ["mysql://host/shop", "not a url", "", "runs.db", "http://example.org/", "sqlite"])
def test_a_bad_url_is_a_value_error_that_names_it(url):
    """A bad URL raises `ValueError` that names it."""
    with pytest.raises(ValueError, match=re.escape(url or "''") + "|" + re.escape(repr(url))):
        App(url)


def test_the_error_for_a_bad_url_masks_the_password():
    """... (password masked)."""
    with pytest.raises(ValueError, match=r"mysql.*db\.example\.org") as failure:
        App("mysql://clerk:hunter2@db.example.org/shop")
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    ("missing", "database", "remedy"),
    [
        ("psycopg", "postgresql://user:secret@host/shop", "needs psycopg: pip install 'action-retrier[postgres]'"),
        ("django", "django:default", "needs Django: pip install 'action-retrier[django]'"),
    ],
)
def test_a_client_that_is_not_installed_is_named_with_the_remedy(scripts, missing, database, remedy):
    """An extra of this package brings it."""
    scripts.write(
        "job.py",
        f"""
        import sys
        sys.modules[{missing!r}] = None
        from action_retrier import App

        try:
            App({database!r})
        except ValueError as error:
            print(error)
        """,
    )
    said = scripts.run("job.py").stdout
    assert remedy in said
    assert "secret" not in said


def test_a_bad_url_in_the_environment_variable_is_a_value_error_too(monkeypatch):
    """The variable is a URL like any other, its password masked like any other."""
    monkeypatch.setenv("ACTION_RETRIER_DATABASE_URL", "mysql://clerk:hunter2@db.example.org/shop")
    with pytest.raises(ValueError, match="mysql") as failure:
        App()
    assert "hunter2" not in str(failure.value)


def test_the_databases_file_is_private_to_its_owner(tmp_path):
    """The file holds arguments and results: no one else may read it."""
    _touch(App(f"sqlite:///{tmp_path / 'private.db'}"))
    assert (tmp_path / "private.db").stat().st_mode & 0o077 == 0


# -- namespaces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["a", "default", "a9", "a-b_c-1", "a" * 63])
def test_a_namespace_is_a_short_lower_case_word(namespace, database):
    """`[a-z][a-z0-9_-]{0,62}`."""
    App(f"sqlite:///{database}", namespace=namespace)


@pytest.mark.parametrize(
    "namespace", ["", "A", "9a", "-a", "_a", "a" * 64, "a b", "ä", "aé", "a\n", "a.b", "a;drop table runs", "a\0"]
)
def test_any_other_namespace_is_a_value_error(namespace, database):
    """... else `ValueError`."""
    with pytest.raises(ValueError, match="namespace"):
        App(f"sqlite:///{database}", namespace=namespace)


async def test_namespaces_in_one_database_see_nothing_of_each_other(api):
    """Independent installations in one database see nothing of each other."""
    executed = []
    api.app.action(name="job")(noting(executed, "default"))
    run_id = await api.run(api.app, "job", idempotency_key="k")

    async with api.sibling(namespace="other") as other:
        other.app.action(name="job")(noting(executed, "other"))
        assert (await other.list(other.app)).runs == []
        for verb in (other.status, other.get, other.cancel, other.cleanup, other.retry, other.wait):
            with pytest.raises(RunNotFound):
                await verb(other.app, run_id)
        assert await other.cancel_all(other.app, everything=True) == 0
        assert await other.retry_all(other.app, everything=True) == 0
        async with other.worker() as worker:
            await worker.until_idle()
        assert executed == []

        other_id = await other.run(other.app, "job", idempotency_key="k")
        assert other_id != run_id
        async with api.worker() as worker:
            await worker.until_idle()
        assert executed == ["default"]
        assert await other.status(other.app, other_id) == InProgress()


def noting(calls, value):
    """Make a function that notes that it was called."""

    def job() -> None:
        calls.append(value)

    return job


# -- the schema --------------------------------------------------------------------------------------------------------


async def test_the_schema_is_created_on_first_use(api):
    """The schema is created or upgraded on first use."""
    assert (await api.list(api.app)).runs == []


async def test_without_auto_migrate_an_empty_database_is_refused(colour, database, clock):
    """`auto_migrate=False` refuses with `SchemaMismatch` that names the command to run."""
    app = App(f"sqlite:///{database}", auto_migrate=False, clock=clock)

    async def use():
        if colour == "async":
            async with app:
                await ActionRetrier(app).list(app)
        else:
            await asyncio.to_thread(_touch, app)

    with pytest.raises(SchemaMismatch, match="action-retrier migrate"):
        await use()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"notes"}, "a refusal leaves the database as it was"


async def test_without_auto_migrate_a_current_database_is_served(api):
    """`auto_migrate=False` refuses to change the schema, not to work with it."""
    async with api.sibling(auto_migrate=False) as careful:
        assert (await careful.list(careful.app)).runs == []


def test_ten_processes_may_start_at_once(scripts):
    """The schema is created under a lock, so that ten processes starting at once is fine."""
    scripts.write(
        "job.py",
        """
        from action_retrier import App, SyncActionRetrier

        app = App("sqlite:///shared.db")

        @app.action
        def charge(order_id: int) -> None: ...

        with app:
            print(SyncActionRetrier(app).run(app, charge, {"order_id": 7}))
        """,
    )
    processes = [scripts.start("job.py") for _ in range(10)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 10, outputs
    assert len({out for out, _ in outputs}) == 10
    with App(f"sqlite:///{scripts.folder / 'shared.db'}") as app:
        assert len(SyncActionRetrier(app).list(app).runs) == 10


# -- registration ------------------------------------------------------------------------------------------------------


def test_an_action_stays_directly_callable():
    """The function stays directly callable."""
    assert charge(7) == 700
    assert charge(order_id=7) == 700


async def test_an_async_action_stays_directly_callable():
    """The function stays directly callable."""
    assert await fetch("http://x") == "HTTP://X"


def test_an_action_keeps_its_name_and_docstring(database):
    """The decorator leaves the function what it was to its readers."""
    app = App(f"sqlite:///{database}")

    @app.action(name="documented")
    def documented() -> None:
        """Say so."""

    assert documented.__name__ == "documented"
    assert documented.__doc__ == "Say so."


@pytest.mark.parametrize("keyword", ["action", "mutation"])
def test_a_registering_decorator_takes_parentheses_or_none(keyword):
    """`@app.action` / `@app.action(name=..., ...)`; `@app.mutation` / `@app.mutation(name=..., ...)`."""
    app = App("sqlite:///never-opened.db")
    decorate = getattr(app, keyword)
    assert callable(decorate(_module_level))
    assert callable(decorate(name="under another name")(_module_level))


def _module_level() -> None: ...


async def test_sync_actions_run_in_threads_and_never_on_the_event_loop(api):
    """Sync ones run in threads, never on the event loop."""
    seen = []

    @api.app.action(name="look")
    def look() -> None:
        seen.append(threading.current_thread())
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()

    run_id = await api.run(api.app, look, max_failures=0)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value=None)
    assert seen[0] is not threading.main_thread()


async def test_async_actions_run_on_an_event_loop(api):
    """`def` or `async def`, whatever the colour of the program."""

    @api.app.action(name="look")
    async def look() -> bool:
        return asyncio.get_running_loop().is_running()

    run_id = await api.run(api.app, look, max_failures=0)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value=True)


def _names_of(tmp_path, monkeypatch, source, *calls):
    """Import *source* as the module `shop`; the names under which its functions are stored."""
    (tmp_path / "shop.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    shop = importlib.import_module("shop")
    try:
        retrier = SyncActionRetrier(shop.app)
        with shop.app:
            return [retrier.get(shop.app, retrier.run(shop.app, call(shop), {})).action for call in calls]
    finally:
        monkeypatch.delitem(sys.modules, "shop", raising=False)


def test_the_default_name_is_module_and_qualified_name(tmp_path, monkeypatch, database):
    """Default name `module:qualname`."""
    source = f"""
from action_retrier import App
app = App("sqlite:///{database}")

@app.action
def charge() -> None: ...

@app.action()
def refund() -> None: ...

@app.action(name="mail.send")
def send() -> None: ...

class Mailer:
    @staticmethod
    @app.action
    def send() -> None: ...
"""
    names = _names_of(
        tmp_path,
        monkeypatch,
        source,
        lambda shop: shop.charge,
        lambda shop: shop.refund,
        lambda shop: shop.send,
        lambda shop: shop.Mailer.send,
    )
    assert names == ["shop:charge", "shop:refund", "mail.send", "shop:Mailer.send"]


SCRIPT = """
import sys

from action_retrier import App, SyncActionRetrier

app = App("sqlite:///job.db")
retrier = SyncActionRetrier(app)

@app.action
def charge(order_id: int) -> int:
    return order_id * 100

if __name__ == "__main__":
    with app:
        run_id = retrier.run(app, charge, {"order_id": 7})
        print(retrier.get(app, run_id).action)
"""

WORK = """
from {module} import app, retrier

with app, app.worker() as worker:
    worker.until_idle()
    print([run.result.return_value for run in retrier.list(app).runs])
"""


def test_in_a_script_the_module_is_the_files_stem(scripts):
    """In a script the module is the file's stem, never `__main__`."""
    scripts.write("job.py", SCRIPT)
    assert scripts.run("job.py").stdout.split() == ["job:charge"]


def test_a_script_and_an_importing_worker_mean_the_same_function(scripts):
    """... so that `python job.py` and `action-retrier worker job:app` mean the same function."""
    scripts.write("job.py", SCRIPT)
    scripts.write("work.py", WORK.format(module="job"))
    scripts.run("job.py")
    assert scripts.run("work.py").stdout.strip() == "[700]"


def test_a_script_given_by_a_path_has_the_files_stem_too(scripts):
    """The folder that the script was named with is no part of the name."""
    scripts.write("jobs/nightly.py", SCRIPT)
    assert scripts.run("jobs/nightly.py").stdout.split() == ["nightly:charge"]


def test_a_module_run_with_m_has_its_full_name(scripts):
    """In a script the module is `__spec__.name`."""
    scripts.write("shop/__init__.py", "")
    scripts.write("shop/job.py", SCRIPT)
    scripts.write("work.py", WORK.format(module="shop.job"))
    assert scripts.run("-m", "shop.job").stdout.split() == ["shop.job:charge"]
    assert scripts.run("work.py").stdout.strip() == "[700]"


async def test_aliases_keep_old_names_runnable(api):
    """`aliases` keeps old names runnable."""
    executed = []

    @api.app.action(name="old.charge")
    def old_charge(order_id: int) -> None:
        executed.append("old code")

    run_id = await api.run(api.app, old_charge, {"order_id": 7})

    async with api.sibling() as renamed:

        @renamed.app.action(name="new.charge", aliases=["old.charge", "older.charge"])
        def new_charge(order_id: int) -> int:
            executed.append("new code")
            return order_id

        async with renamed.worker() as worker:
            assert await renamed.result(worker, run_id) == Success(return_value=7)
            by_alias = await renamed.run(renamed.app, "older.charge", {"order_id": 8})
            assert await renamed.result(worker, by_alias) == Success(return_value=8)
    assert executed == ["new code", "new code"]


async def test_runs_under_an_old_name_are_the_actions_own(api):
    """`aliases`: they are listed, canceled and retried with it, and an idempotency key that was used stays used."""

    @api.app.action(name="old.charge")
    def old_charge(order_id: int) -> None: ...

    old = await api.run(api.app, old_charge, {"order_id": 7}, idempotency_key="k")

    async with api.sibling() as renamed:

        @renamed.app.action(name="new.charge", aliases=["old.charge"])
        def new_charge(order_id: int) -> None: ...

        @renamed.app.action(name="refund")
        def refund(order_id: int) -> None: ...

        await renamed.run(renamed.app, refund, {"order_id": 9})
        new = await renamed.run(renamed.app, new_charge, {"order_id": 8}, idempotency_key="other")
        assert await renamed.run(renamed.app, new_charge, {"order_id": 7}, idempotency_key="k") == old
        with pytest.raises(IdempotencyConflict, match="k"):
            await renamed.run(renamed.app, new_charge, {"order_id": 70}, idempotency_key="k")
        for given in (new_charge, "new.charge", "old.charge"):
            page = await renamed.list(renamed.app, action=given)
            assert [run.id for run in page.runs] == [new, old]
        assert await renamed.cancel_all(renamed.app, action=new_charge) == 2
        assert await renamed.retry_all(renamed.app, action="old.charge") == 2


async def test_what_is_registered_while_a_worker_runs_is_executed_by_it(api, note):
    """The decorator may be applied at any time: in a test, at a prompt, by a plugin."""
    async with api.worker() as worker:
        await worker.until_idle()

        @api.app.mutation(name="late.note")
        def late_note(ctx: MutationCtx) -> None:
            note(ctx, "called back")

        @api.app.action(name="late")
        def late() -> int:
            return 7

        run_id = await api.run(api.app, late, on_complete=late_note)
        assert await api.result(worker, run_id) == Success(return_value=7)
        assert (await api.get(api.app, run_id)).blocked_by is None
    assert api.notes() == ["called back"]


@pytest.mark.sqlite("it has one writer")
async def test_another_app_on_the_same_file_is_refused_inside_an_open_transaction_too(api):
    """`app` passed inside an open transaction of the same task: SQLite has one writer, whichever App asks."""
    async with api.sibling(namespace="other") as other:
        done = other.scripted("done")
        async with api.transaction() as ctx:
            with pytest.raises(InvalidContext, match="inside an open transaction on the same database"):
                await other.run(other.app, done.action)
            run_id = await other.run(ctx, done.action)
        assert await other.status(other.app, run_id) == InProgress()


@pytest.mark.parametrize("begin", ["worker", "run_worker"])
async def test_a_worker_is_refused_inside_an_open_transaction(api, begin):
    """On SQLite it would wait for the transaction, and the transaction's block for it, for ever."""
    worker = api.app.worker()
    async with api.transaction():
        with pytest.raises(InvalidContext, match="a worker was started inside an open transaction .*; leave its block"):
            if begin == "worker":
                await api.call(worker.__aenter__ if api.is_async else worker.__enter__)
            else:
                await api.call(api.app.run_worker if api.is_async else api.app.run_worker_sync)
    done = api.scripted("done")
    async with api.entered(lambda: worker) as entered:
        assert await api.result(Worker(api, entered), await api.run(api.app, done.action)) == Success("done")


@pytest.mark.parametrize(
    "text",
    [
        "PRAGMA query_only = ON",
        "PRAGMA locking_mode = EXCLUSIVE",
        "PRAGMA synchronous = OFF",
        "pragma Journal_Mode = DELETE",
        "PRAGMA writable_schema = ON",
        "CREATE TEMP TABLE action_retrier_runs (id)",
        "CREATE TEMP VIEW action_retrier_lanes AS SELECT 1",
    ],
)
@pytest.mark.sqlite("PRAGMAs, and names without a schema")
async def test_what_user_code_may_not_change_on_the_connection_is_refused(api, text):
    """`MutationCtx.db` is the connection that others write through afterwards."""
    async with api.transaction() as ctx:
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            ctx.db.execute(text)
        assert ctx.db.execute("PRAGMA query_only").fetchone() == (0,)
        ctx.db.execute("PRAGMA defer_foreign_keys = ON")
        ctx.db.execute("CREATE TEMP TABLE mine (id)")
    done = api.scripted("done")
    assert await api.status(api.app, await api.run(api.app, done.action)) == InProgress()


async def test_a_cursor_that_user_code_left_half_read_keeps_nobody_from_writing(api, database):
    """It pins the connection to the state that it reads, which others have left behind."""
    done = api.scripted("done")
    async with api.transaction() as ctx:
        ctx.db.execute("CREATE TABLE many AS SELECT value FROM json_each('[1, 2, 3]')")
    async with api.transaction() as ctx:
        cursor = ctx.db.execute("SELECT value FROM many")
        assert cursor.fetchone() == (1,)
    with contextlib.closing(sqlite3.connect(database)) as theirs, theirs:
        theirs.execute("INSERT INTO many VALUES (4)")

    run_id = await api.run(api.app, done.action)

    assert await api.status(api.app, run_id) == InProgress()
    with pytest.raises(sqlite3.Error):
        cursor.fetchall()


@pytest.mark.parametrize("first", ["action", "mutation"])
@pytest.mark.parametrize("second", ["action", "mutation"])
def test_two_functions_under_one_name_are_refused_at_once(first, second, database):
    """Registering two functions under one name raises `ValueError` at once."""
    app = App(f"sqlite:///{database}")

    def one() -> None: ...

    def two() -> None: ...

    getattr(app, first)(name="twice")(one)
    with pytest.raises(ValueError, match="twice"):
        getattr(app, second)(name="twice")(two)


def test_an_alias_that_is_anothers_name_is_refused_at_once(database):
    """An alias is a name, too."""
    app = App(f"sqlite:///{database}")

    def one() -> None: ...

    def two() -> None: ...

    app.action(name="taken")(one)
    with pytest.raises(ValueError, match="taken"):
        app.action(name="free", aliases=["taken"])(two)


def test_a_name_that_is_anothers_alias_is_refused_at_once(database):
    """An alias is a name, too."""
    app = App(f"sqlite:///{database}")

    def one() -> None: ...

    def two() -> None: ...

    app.action(name="first", aliases=["taken"])(one)
    with pytest.raises(ValueError, match="taken"):
        app.action(name="taken")(two)


@pytest.mark.parametrize("keyword", ["action", "mutation"])
def test_a_lambda_is_refused_at_once(keyword, database):
    """Registering a lambda raises `ValueError` at once, whatever name it is given."""
    decorate = getattr(App(f"sqlite:///{database}"), keyword)
    with pytest.raises(ValueError, match="lambda"):
        decorate(lambda: None)
    with pytest.raises(ValueError, match="lambda"):
        decorate(name="named")(lambda: None)


@pytest.mark.parametrize("keyword", ["action", "mutation"])
def test_a_nested_closure_is_refused_at_once(keyword, database):
    """Registering a nested closure raises `ValueError` at once, that names it."""
    decorate = getattr(App(f"sqlite:///{database}"), keyword)

    def nested() -> None: ...

    with pytest.raises(ValueError, match="nested"):
        decorate(nested)
    decorate(name="with a name of its own")(nested)


@pytest.mark.parametrize("colour_of_mutation", ["def", "async def"])
@pytest.mark.sqlite("its connection has no colour")
async def test_a_mutation_of_either_colour_is_served_on_a_sqlite_url(api, colour_of_mutation):
    """Only a mutation whose colour the engine cannot serve is refused."""
    if colour_of_mutation == "def":

        @api.app.mutation(name="write")
        def write(ctx: MutationCtx, text: str) -> str:
            ctx.db.execute("INSERT INTO notes (text) VALUES (?)", (text,))
            return text
    else:

        @api.app.mutation(name="write")
        async def write(ctx: MutationCtx, text: str) -> str:
            ctx.db.execute("INSERT INTO notes (text) VALUES (?)", (text,))
            return text

    assert await api.run_mutation(write, {"text": "hello"}) == "hello"
    assert api.notes() == ["hello"]


# -- opening and closing -----------------------------------------------------------------------------------------------


async def test_an_app_is_used_without_being_opened(database, clock):
    """Use without `async with` opens lazily."""
    app = App(f"sqlite:///{database}", clock=clock)
    app.action(name="job")(_module_level)
    run_id = await ActionRetrier(app).run(app, "job")
    assert await ActionRetrier(app).status(app, run_id) == InProgress()
    async with app:
        pass


def test_a_sync_app_is_used_without_being_opened(database, clock):
    """Use without `with` opens lazily."""
    app = App(f"sqlite:///{database}", clock=clock)
    app.action(name="job")(_module_level)
    run_id = SyncActionRetrier(app).run(app, "job")
    assert SyncActionRetrier(app).status(app, run_id) == InProgress()
    with app:
        pass


async def test_a_worker_opens_an_app_that_is_not_open(database, clock):
    """Use without `async with` opens lazily: `app.worker()` is a use, too."""
    app = App(f"sqlite:///{database}", clock=clock)
    app.action(name="job")(_module_level)
    run_id = await ActionRetrier(app).run(app, "job")
    async with app.worker() as worker:
        await worker.until_idle()
    assert await ActionRetrier(app).status(app, run_id) == Completed(result=Success(return_value=None))
    async with app:
        pass


def test_a_program_with_an_app_left_open_ends(scripts):
    """Lazily opened means: nobody has to close it for the program to end."""
    scripts.write(
        "job.py",
        """
        from action_retrier import App, SyncActionRetrier

        app = App("sqlite:///job.db")

        @app.action
        def charge() -> None: ...

        print(SyncActionRetrier(app).run(app, charge))
        """,
    )
    assert scripts.run("job.py").stdout.strip()


def test_an_async_program_with_an_app_left_open_ends(scripts):
    """Lazily opened means: nobody has to close it for the program to end."""
    scripts.write(
        "job.py",
        """
        import asyncio
        from action_retrier import ActionRetrier, App

        app = App("sqlite:///job.db")

        @app.action
        async def charge() -> None: ...

        async def main():
            print(await ActionRetrier(app).run(app, charge))

        asyncio.run(main())
        """,
    )
    assert scripts.run("job.py").stdout.strip()


def test_an_app_serves_one_event_loop_after_another(scripts):
    """Opened, closed and opened again, or never opened: a program may call `asyncio.run` more than once."""
    scripts.write(
        "job.py",
        """
        import asyncio
        from action_retrier import ActionRetrier, App

        app = App("sqlite:///job.db")
        retrier = ActionRetrier(app)

        @app.action
        async def charge() -> None: ...

        async def lazily():
            await retrier.run(app, charge)

        async def opened():
            async with app:
                await retrier.run(app, charge)
                async with app.worker() as worker:
                    await worker.until_idle()
                return [run.state for run in (await retrier.list(app)).runs]

        asyncio.run(lazily())
        asyncio.run(lazily())
        print(asyncio.run(opened()))
        print(asyncio.run(opened()))
        asyncio.run(lazily())
        """,
    )
    out = scripts.run("job.py").stdout.splitlines()
    assert out == [str(["succeeded"] * 3), str(["succeeded"] * 4)]


# -- workers -----------------------------------------------------------------------------------------------------------


async def test_a_worker_runs_in_this_process_until_its_block_ends(api):
    """`async with app.worker() as worker:` runs a worker in this process."""
    done = api.scripted("done")
    async with api.worker() as worker:
        run_id = await api.run(api.app, done.action)
        await worker.until_idle()
        assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))
    late = await api.run(api.app, done.action)
    async with api.connection() as connection:
        assert await api.status(connection, late) == InProgress()
    assert done.executions == 1


async def test_a_running_worker_notices_new_runs_by_itself(api):
    """A run is executed without anybody asking the worker to look."""
    done = api.scripted("done")
    async with api.worker():
        run_id = await api.run(api.app, done.action)
        assert await api.wait(api.app, run_id) == Success(return_value="done")


async def test_a_worker_notices_what_another_app_starts(api):
    """Another connection's commit is noticed, too (polling is the truth)."""
    done = api.scripted("done")
    async with api.sibling() as other, api.worker():
        run_id = await other.run(other.app, "scripted")
        assert await other.wait(other.app, run_id) == Success(return_value="done")
    assert done.executions == 1


async def test_concurrency_bounds_how_many_actions_run_at_once(api):
    """`concurrency=2`."""
    lock, running, peak = threading.Lock(), [], []
    both = threading.Barrier(2)

    @api.app.action(name="slow")
    def slow(number: int) -> None:
        with lock:
            running.append(number)
            peak.append(len(running))
        if number < 2:
            both.wait(20)
        with lock:
            running.remove(number)

    for number in range(6):
        await api.run(api.app, slow, {"number": number}, priority=10 - number)
    async with api.worker(concurrency=2) as worker:
        await worker.until_idle()
    assert len(peak) == 6
    assert max(peak) == 2


async def test_concurrency_holds_for_threads_too(api):
    """`concurrency=60`: sixty blocking actions run at once, whatever the size of Python's default pool."""
    everybody = threading.Barrier(60)

    @api.app.action(name="slow")
    def slow() -> None:
        everybody.wait(20)

    run_ids = await api.run_many(api.app, [Call(slow)] * 60)
    async with api.worker(concurrency=60) as worker:
        await worker.until_idle()
        for run_id in run_ids:
            assert await api.status(api.app, run_id) == Completed(result=Success(return_value=None))
            assert (await api.get(api.app, run_id)).failures == 0


async def test_a_worker_takes_only_its_queues(api):
    """`queues`: which it may take from; `None`: all."""
    done = api.scripted("done")
    mail = await api.run(api.app, done.action, queue="mail")
    bulk = await api.run(api.app, done.action, queue="bulk")
    plain = await api.run(api.app, done.action)
    async with api.worker(queues=["mail"]) as worker:
        await worker.until_idle()
        assert [(await api.get(api.app, run)).state for run in (mail, bulk, plain)] == [
            "succeeded",
            "pending",
            "pending",
        ]
    async with api.worker(queues=["bulk", "default"]) as worker:
        await worker.until_idle()
    assert [(await api.get(api.app, run)).state for run in (mail, bulk, plain)] == ["succeeded"] * 3


async def test_a_worker_without_queues_takes_all(api):
    """`queues=None`: all."""
    done = api.scripted("done")
    runs = [await api.run(api.app, done.action, queue=queue) for queue in ("mail", "bulk", "default")]
    async with api.worker() as worker:
        await worker.until_idle()
    assert [(await api.get(api.app, run)).state for run in runs] == ["succeeded"] * 3


async def test_until_idle_returns_though_a_run_is_due_later(api):
    """`until_idle` returns when nothing that it can run is due."""
    done = api.scripted("done")
    await api.run_after(api.app, 1_000, done.action)
    async with api.worker() as worker:
        await worker.until_idle()
        assert done.executions == 0
        api.clock.advance(1_000)
        await worker.until_idle()
        assert done.executions == 1


async def test_until_idle_returns_though_a_run_waits_for_an_unknown_action(api):
    """... nothing *that it can run*."""
    await api.run(api.app, "nobody.knows")
    async with api.worker() as worker:
        await worker.until_idle()


async def test_until_idle_waits_for_what_is_executing(api):
    """When it returns, the runs that were due are done."""
    done = api.scripted("done")
    runs = [await api.run(api.app, done.action) for _ in range(25)]
    async with api.worker(concurrency=3) as worker:
        await worker.until_idle()
        assert done.executions == 25
        for run_id in runs:
            assert await api.status(api.app, run_id) == Completed(result=Success(return_value="done"))


async def test_a_worker_drains_when_its_block_ends(api, gate):
    """What is executing when the block ends may finish within `grace_ms`."""

    @api.app.action(name="slow")
    def slow() -> str:
        gate.wait()
        return "finished"

    run_id = await api.run(api.app, slow)
    async with api.worker(grace_ms=20_000):
        await gate.until_reached()
        threading.Timer(0.2, gate.open).start()
    assert await api.status(api.app, run_id) == Completed(result=Success(return_value="finished"))


async def test_a_worker_whose_block_raises_ends_at_once(api, gate):
    """The program is failing: what executes is stopped, whatever `grace_ms` says, and is the next worker's."""

    @api.app.action(name="slow", max_failures=1)
    def slow(ctx: SyncActionCtx) -> str:
        gate.reached.set()
        while ctx.attempt == 1:
            ctx.raise_if_canceled()
            threading.Event().wait(0.005)
        return "finished"

    run_id = await api.run(api.app, slow)
    with pytest.raises(ZeroDivisionError):
        async with api.worker(grace_ms=3_600_000):
            await gate.until_reached()
            raise ZeroDivisionError
    assert (await api.get(api.app, run_id)).attempts[0].error_type == "WorkerStopped"
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success("finished")


async def test_a_worker_that_cannot_begin_says_why(api, monkeypatch):
    """What went wrong is raised where the block is entered; nothing is left of it, and the next one begins."""

    def fail(*_):
        raise LookupError("no room for a row")

    with monkeypatch.context() as patch:
        patch.setattr(_incarnation, "register_worker", fail)
        with pytest.raises(LookupError, match="no room"):
            async with api.worker():
                pass
    done = api.scripted("done")
    async with api.worker() as worker:
        assert await api.result(worker, await api.run(api.app, done.action)) == Success("done")


async def test_a_worker_may_be_stopped_before_its_block_ends(async_api):
    """Its end has been then."""
    done = async_api.scripted("done")
    async with async_api.app.worker() as worker:
        await worker.stop()
        run_id = await async_api.run(async_api.app, done.action)
    await worker.until_idle()
    assert await async_api.status(async_api.app, run_id) == InProgress()


async def test_who_no_longer_waits_for_idleness_keeps_nobody_waiting(async_api, caplog):
    """A wait that was cancelled is forgotten."""
    async with async_api.app.worker() as worker:
        await worker.until_idle()
        given_up = asyncio.ensure_future(worker.until_idle())
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait_for(worker.until_idle(), 30)
    assert given_up.cancelled()
    assert "unexpected error" not in caplog.text


async def test_run_worker_that_is_cancelled_ends_at_once(async_api, gate):
    """Like a block that raises: what executes is stopped, whatever `grace_ms` says."""

    @async_api.app.action(name="slow", max_failures=1)
    async def slow() -> None:
        await gate.wait_async()

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run_id = await async_api.run(async_api.app, slow)
    running = asyncio.ensure_future(async_api.app.run_worker(grace_ms=3_600_000))
    await gate.until_reached()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 30)

    assert (await async_api.get(async_api.app, run_id)).attempts[0].error_type == "WorkerStopped"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


RUN_UNTIL_SIGNAL_SYNC = """
import threading
from action_retrier import App, SyncActionRetrier

app = App("sqlite:///job.db")
retrier = SyncActionRetrier(app)

@app.action
def slow() -> str:
    print("started", flush=True)
    threading.Event().wait(1)
    return "drained"

retrier.run(app, slow)
app.run_worker_sync()
print([run.result.return_value for run in retrier.list(app).runs])
"""

RUN_UNTIL_SIGNAL_ASYNC = """
import asyncio
from action_retrier import ActionRetrier, App

app = App("sqlite:///job.db")
retrier = ActionRetrier(app)

@app.action
async def slow() -> str:
    print("started", flush=True)
    await asyncio.sleep(1)
    return "drained"

async def main():
    await retrier.run(app, slow)
    await app.run_worker()
    print([run.result.return_value for run in (await retrier.list(app)).runs])

asyncio.run(main())
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("source", [RUN_UNTIL_SIGNAL_ASYNC, RUN_UNTIL_SIGNAL_SYNC], ids=["async", "sync"])
def test_run_worker_runs_until_a_signal_and_then_drains(scripts, source, stop):
    """`await app.run_worker(...)` runs one until SIGTERM/SIGINT, then drains."""
    scripts.write("job.py", source)
    process = scripts.start("job.py")
    try:
        assert process.stdout.readline() == "started\n"
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out == "['drained']\n"


# -- transactions and mutations ----------------------------------------------------------------------------------------


async def test_calls_at_the_same_time_do_not_undo_each_other(async_api):
    """A program that gathers its calls in one transaction: one call's failure takes back nothing of the others'."""
    api = async_api

    @api.app.action(name="charge")
    def charge(order_id: int) -> None: ...

    await api.run(api.app, charge, {"order_id": 1}, idempotency_key="taken")
    async with api.transaction() as ctx:
        calls = []
        for n in range(5):
            calls.append(api.run(ctx, charge, {"order_id": n}, idempotency_key=f"k{n}"))
            calls.append(api.run(ctx, charge, {"order_id": 2}, idempotency_key="taken"))
            calls.append(api.run(ctx, charge, {"order_id": n}))
        ended = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(one) for one in ended] == [str, IdempotencyConflict, str] * 5
    run_ids = [run_id for run_id in ended if isinstance(run_id, str)]
    assert [await api.status(api.app, run_id) for run_id in run_ids] == [InProgress()] * 10


@pytest.mark.parametrize("flavour", ["def", "async def"])
async def test_a_mutation_may_take_as_long_as_it_likes(api, flavour):
    """However large its time limit is: no database's, thread's or timer's number overflows."""
    if flavour == "def":

        @api.app.mutation(name="slow", timeout_ms=1e300)
        def slow(ctx: MutationCtx) -> str:
            return "done"
    else:

        @api.app.mutation(name="slow", timeout_ms=1e300)
        async def slow(ctx: MutationCtx) -> str:
            return "done"

    assert await api.run_mutation("slow") == "done"


async def test_a_transaction_commits_on_exit(api, note):
    """`async with app.transaction() as ctx:` gives a `MutationCtx`; commit on exit."""
    async with api.transaction() as ctx:
        assert isinstance(ctx, MutationCtx)
        await api.call(note, ctx, "kept")
        assert api.notes() == []
    assert api.notes() == ["kept"]


async def test_a_transaction_rolls_back_on_error(api, note):
    """... rollback on error, and the error goes on."""

    async def fail_inside():
        async with api.transaction() as ctx:
            await api.call(note, ctx, "lost")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_inside()
    assert api.notes() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
async def test_a_transaction_rolls_back_whatever_ends_it(api, note, error):
    """... rollback on error, however the block ends."""

    async def fail_inside():
        async with api.transaction() as ctx:
            await api.call(note, ctx, "lost")
            raise error

    with pytest.raises(error):
        await fail_inside()
    assert api.notes() == []
    async with api.transaction() as ctx:
        await api.call(note, ctx, "the next one")
    assert api.notes() == ["the next one"]


async def test_a_cancelled_task_leaves_no_transaction_behind(async_api, note):
    """Cancelling whoever holds the transaction rolls it back, and others go on."""
    api, inside = async_api, asyncio.Event()

    async def hold():
        async with api.app.transaction() as ctx:
            note(ctx, "lost")
            inside.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(hold())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with api.transaction() as ctx:
        await api.call(note, ctx, "kept")
    assert api.notes() == ["kept"]


async def test_cancelled_calls_leave_nothing_locked(async_api):
    """A caller that gives up in the middle of a call disturbs nobody else."""
    api = async_api
    done = api.scripted("done")
    tasks = [asyncio.create_task(api.retrier.run(api.app, done.action)) for _ in range(40)]
    for turn, task in enumerate(tasks):
        for _ in range(turn % 5):
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    run_id = await api.run(api.app, done.action)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="done")
        await worker.until_idle()
    assert {run.state for run in await api.all_runs()} == {"succeeded"}


@pytest.mark.parametrize("inner", ["run_mutation", "transaction"])
async def test_a_transaction_inside_another_is_refused(api, inner):
    """Otherwise SQLite would wait for itself: `InvalidContext`, as for `app` passed inside a transaction."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx) -> None: ...

    async def nested():
        async with api.transaction():
            if inner == "run_mutation":
                await api.run_mutation(write)
            else:
                async with api.transaction():
                    pass

    with pytest.raises(InvalidContext):
        await nested()


async def test_a_mutation_runs_in_a_transaction_and_returns_what_it_returns(api, note):
    """`await app.run_mutation(fn, args=None)` runs a mutation in a transaction and returns what it returns."""
    returned = object()

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx, text: str) -> object:
        note(ctx, text)
        return returned

    assert await api.run_mutation(write, {"text": "kept"}) is returned
    assert api.notes() == ["kept"]


async def test_a_mutation_without_arguments_is_run_without_arguments(api):
    """`args=None`."""

    @api.app.mutation(name="count")
    def count(ctx: MutationCtx) -> int:
        return len(api.system.read_notes(ctx.db))

    assert await api.run_mutation(count) == 0


async def test_a_mutations_arguments_are_validated(api):
    """Its args are a mapping that fits its signature."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx, text: str) -> None: ...

    for args in ({}, {"text": "x", "more": 1}, {"text": [1]}):
        with pytest.raises(InvalidArguments):
            await api.run_mutation(write, args)


async def test_a_mutations_own_exception_rolls_back_and_propagates(api, note):
    """The mutation's own exception rolls back and propagates; it is not retried."""
    calls = []

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx) -> None:
        calls.append(1)
        note(ctx, "lost")
        raise LookupError("no such order")

    with pytest.raises(LookupError, match="no such order"):
        await api.run_mutation(write)
    assert api.notes() == []
    assert len(calls) == 1


async def test_a_mutation_without_ctx_gets_none(api):
    """Only a first parameter named `ctx` receives one."""

    @api.app.mutation(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    assert await api.run_mutation(add, {"a": 1, "b": 2}) == 3


@pytest.mark.parametrize("isolation", ["serializable", "read committed"])
async def test_a_mutation_may_say_its_isolation(api, note, isolation):
    """Serializable unless it says `"read committed"`."""

    @api.app.mutation(name="write", isolation=isolation)
    def write(ctx: MutationCtx) -> None:
        note(ctx, isolation)

    await api.run_mutation(write)
    assert api.notes() == [isolation]


async def test_mutations_that_read_and_write_at_once_lose_no_update(api):
    """A mutation runs inside one database transaction, serializable."""

    @api.app.mutation(name="increment")
    def increment(ctx: MutationCtx) -> None:
        api.system.write_note(ctx.db, str(len(api.system.read_notes(ctx.db))))

    run = api.app.run_mutation if api.is_async else api.app.run_mutation_sync
    await asyncio.gather(*(api.background(run, increment) for _ in range(20)))
    assert sorted(map(int, api.notes())) == list(range(20))


@pytest.mark.sqlite("sqlite3.Connection")
async def test_a_mutations_database_is_a_sqlite_connection_with_the_transaction_open(api):
    """`MutationCtx.db` is the database's own connection with the transaction open: `sqlite3.Connection`."""

    @api.app.mutation(name="look")
    def look(ctx: MutationCtx) -> tuple[bool, bool]:
        return isinstance(ctx.db, sqlite3.Connection), ctx.db.in_transaction

    assert await api.run_mutation(look) == (True, True)
    async with api.transaction() as ctx:
        assert isinstance(ctx.db, sqlite3.Connection)
        assert ctx.db.in_transaction


@pytest.mark.postgres("psycopg's connections")
async def test_a_mutations_database_is_a_psycopg_connection_of_its_colour(api):
    """`psycopg.AsyncConnection` in an `async def` mutation and `psycopg.Connection` in a `def` one."""
    kinds = []

    @api.app.mutation(name="look")
    def look(ctx: MutationCtx) -> None:
        kinds.append((isinstance(ctx.db, psycopg.Connection), ctx.db.info.transaction_status.name))

    @api.app.mutation(name="look.async")
    async def look_async(ctx: MutationCtx) -> None:
        kinds.append((isinstance(ctx.db, psycopg.AsyncConnection), ctx.db.info.transaction_status.name))

    await api.run_mutation(look)
    await api.run_mutation(look_async)
    assert kinds == [(True, "INTRANS")] * 2


def _commit(db):
    db.commit()


def _rollback(db):
    db.rollback()


def _execute_commit(db):
    db.execute("COMMIT")


def _execute_end(db):
    db.execute("/* so */ END TRANSACTION")


def _execute_rollback(db):
    db.execute("ROLLBACK")


def _executescript(db):
    db.executescript("INSERT INTO notes (text) VALUES ('script');")


def _with_block(db):
    with db:
        db.execute("INSERT INTO notes (text) VALUES ('block')")


@pytest.mark.parametrize(
    "way_out", [_commit, _rollback, _execute_commit, _execute_end, _execute_rollback, _executescript, _with_block]
)
async def test_ending_the_transaction_through_the_connection_is_an_error(api, note, way_out):
    """Committing or rolling back through it is an error, not a way out: nothing is written."""

    @api.app.mutation(name="smuggle")
    def smuggle(ctx: MutationCtx) -> None:
        note(ctx, "before")
        way_out(ctx.db)
        note(ctx, "after")

    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is the driver's business
        await api.run_mutation(smuggle)
    assert api.notes() == []


@pytest.mark.parametrize("end", ["returns", "raises"])
async def test_swallowing_the_error_of_a_commit_commits_nothing(api, note, end):
    """... not a way out: not even for a mutation that catches the error."""

    @api.app.mutation(name="smuggle")
    def smuggle(ctx: MutationCtx) -> None:
        note(ctx, "before")
        with contextlib.suppress(Exception):
            ctx.db.commit()
        if end == "raises":
            raise LookupError("after all, no")

    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is told is not promised
        await api.run_mutation(smuggle)
    assert api.notes() == []


async def test_the_user_may_commit_on_a_connection_after_a_mutation(api, note):
    """What is refused inside a mutation is the user's business elsewhere."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx) -> None:
        note(ctx, "mutation")

    await api.run_mutation(write)
    async with api.connection() as connection:
        await api.call(note, connection, "own")
        await api.call(connection.commit)
    assert api.notes() == ["mutation", "own"]


# -- run_action and the contexts ---------------------------------------------------------------------------------------


async def test_run_action_runs_it_once_here_and_stores_nothing(api):
    """`await app.run_action(fn, args=None)` runs an action once, here, neither stored nor retried."""

    @api.app.action(name="charge")
    def charge_order(order_id: int) -> int:
        return order_id * 100

    assert await api.run_action(charge_order, {"order_id": 7}) == 700
    assert (await api.list(api.app)).runs == []


async def test_run_action_does_not_retry(api, flavour):
    """... neither stored nor retried: the exception goes to the caller."""
    broken = api.scripted(LookupError("no such order"), flavour=flavour)
    with pytest.raises(LookupError, match="no such order"):
        await api.run_action(broken.action)
    assert broken.executions == 1
    assert (await api.list(api.app)).runs == []


async def test_run_action_gives_a_real_context(api, note):
    """... with a real context."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx, text: str) -> int:
        note(ctx, text)
        return 42

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> dict:
        ctx.progress(0.5, "half way")
        ctx.raise_if_canceled()
        return {
            "attempt": ctx.attempt,
            "canceled": ctx.canceled,
            "stop_reason": ctx.stop_reason,
            "run_id": ctx.run_id,
            "mutation": ctx.run_mutation(write, {"text": "real"}),
        }

    seen = await api.run_action(work)
    assert isinstance(seen.pop("run_id"), str)
    assert seen == {"attempt": 1, "canceled": False, "stop_reason": None, "mutation": 42}
    assert api.notes() == ["real"]


async def test_a_def_action_receives_a_sync_context(api):
    """A first parameter named `ctx` receives a `SyncActionCtx` in a `def` action, with or without a type hint."""
    seen = []

    @api.app.action(name="plain")
    def plain(ctx, value: int) -> None:
        seen.append((ctx, value))

    run_id = await api.run(api.app, plain, {"value": 1})
    async with api.worker() as worker:
        await worker.until_idle()
    (ctx, value) = seen[0]
    assert isinstance(ctx, SyncActionCtx)
    assert (ctx.run_id, ctx.attempt, ctx.max_attempts, value) == (run_id, 1, 5, 1)


async def test_an_async_action_receives_an_async_context(api):
    """A first parameter named `ctx` receives an `ActionCtx`."""
    seen = []

    @api.app.action(name="plain")
    async def plain(ctx, value: int) -> None:
        seen.append((ctx, value))

    run_id = await api.run(api.app, plain, {"value": 1}, max_failures=0)
    async with api.worker() as worker:
        await worker.until_idle()
    (ctx, value) = seen[0]
    assert isinstance(ctx, ActionCtx)
    assert (ctx.run_id, ctx.attempt, ctx.max_attempts, value) == (run_id, 1, 1, 1)


async def test_attempt_counts_from_one_up_to_max_attempts(api, flavour):
    """`attempt` (1-based), `max_attempts`."""
    broken = api.scripted(ValueError("no"), flavour=flavour, max_failures=2)
    run_id = await api.run(api.app, broken.action)
    async with api.worker() as worker:
        assert isinstance(await api.result(worker, run_id), Failed)
    assert [(ctx.attempt, ctx.max_attempts) for ctx in broken.contexts] == [(1, 3), (2, 3), (3, 3)]


async def test_an_async_action_awaits_a_mutation(api, note):
    """`await run_mutation(fn, args)`."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx, text: str) -> str:
        note(ctx, text)
        return text.upper()

    @api.app.action(name="work")
    async def work(ctx: ActionCtx) -> str:
        return await ctx.run_mutation(write, {"text": "from the action"})

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="FROM THE ACTION")
    assert api.notes() == ["from the action"]


async def test_a_def_action_blocks_on_a_mutation(api, note):
    """... (blocking in `SyncActionCtx`)."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx, text: str) -> str:
        note(ctx, text)
        return text.upper()

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> str:
        return ctx.run_mutation(write, {"text": "from the action"})

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="FROM THE ACTION")
    assert api.notes() == ["from the action"]


async def test_a_mutation_of_an_action_that_then_fails_stays_committed(api, note):
    """An action is no transaction: each mutation it runs commits by itself."""

    @api.app.mutation(name="write")
    def write(ctx: MutationCtx, attempt: int) -> None:
        note(ctx, f"attempt {attempt}")

    @api.app.action(name="work", max_failures=1)
    def work(ctx: SyncActionCtx) -> None:
        ctx.run_mutation(write, {"attempt": ctx.attempt})
        raise ValueError("afterwards")

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert isinstance(await api.result(worker, run_id), Failed)
    assert api.notes() == ["attempt 1", "attempt 2"]


async def test_a_mutations_exception_reaches_the_action_that_ran_it(api):
    """The mutation's own exception rolls back and propagates."""

    @api.app.mutation(name="refuse")
    def refuse(ctx: MutationCtx) -> None:
        raise LookupError("no such order")

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> str:
        try:
            ctx.run_mutation(refuse)
        except LookupError as error:
            return str(error)
        return "no exception"

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(return_value="no such order")


async def test_an_undisturbed_attempt_is_not_canceled(api, flavour):
    """`canceled`: true whenever this attempt should stop; else false, without a reason."""
    seen = []

    def look(ctx):
        ctx.raise_if_canceled()
        seen.append((ctx.canceled, ctx.stop_reason))

    if flavour == "def":

        @api.app.action(name="work")
        def work(ctx: SyncActionCtx) -> None:
            look(ctx)
    else:

        @api.app.action(name="work")
        async def work(ctx: ActionCtx) -> None:
            look(ctx)

    await api.run(api.app, work)
    async with api.worker() as worker:
        await worker.until_idle()
    assert seen == [(False, None)]


async def test_raise_if_canceled_ends_a_thread_that_was_canceled(api, gate):
    """`raise_if_canceled()` raises once the attempt should stop."""
    after = []

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> None:
        gate.reached.set()
        pause = threading.Event()
        for _ in range(2_000):
            ctx.raise_if_canceled()
            pause.wait(0.005)
        after.append("went on")

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        await gate.until_reached()
        assert await api.cancel(api.app, run_id)
        await worker.until_idle()
    assert after == []
    assert await api.status(api.app, run_id) == Completed(result=Canceled())


async def test_canceled_is_usable_from_another_thread(api, gate):
    """`canceled` is usable from a thread, also of an `async def` action."""
    seen = []

    @api.app.action(name="work")
    async def work(ctx: ActionCtx) -> None:
        seen.append(await asyncio.to_thread(lambda: (ctx.canceled, ctx.stop_reason)))

    await api.run(api.app, work)
    async with api.worker() as worker:
        await worker.until_idle()
    assert seen == [(False, None)]


async def test_progress_is_visible_while_the_action_runs(api, gate, flavour):
    """`progress(fraction, message="")`, seen in `get`."""
    if flavour == "def":

        @api.app.action(name="work")
        def work(ctx: SyncActionCtx) -> None:
            ctx.progress(0.25, "first quarter")
            gate.wait()
    else:

        @api.app.action(name="work")
        async def work(ctx: ActionCtx) -> None:
            ctx.progress(0.25, "first quarter")
            await gate.wait_async()

    run_id = await api.run(api.app, work)
    assert (await api.get(api.app, run_id)).progress is None

    async def progress():
        return (await api.get(api.app, run_id)).progress

    async with api.worker() as worker:
        await gate.until_reached()
        seen = await api.eventually(progress)
        gate.open()
        await worker.until_idle()
    assert (seen.fraction, seen.message) == (0.25, "first quarter")


async def test_progress_is_a_number_and_a_text(api):
    """Anything else is refused where it is said; the attempt may go on."""
    refused = []

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> str:
        for wrong in ((2.0, ""), (0.5, b"half"), ("half", "")):
            try:
                ctx.progress(*wrong)
            except (TypeError, ValueError) as error:
                refused.append(str(error))
        return repr(ctx)

    run_id = await api.run(api.app, work)
    async with api.worker() as worker:
        assert await api.result(worker, run_id) == Success(f"<SyncActionCtx of run {run_id}, attempt 1>")
    assert [text.split()[0] for text in refused] == ["fraction", "message", "fraction"]
    assert (await api.get(api.app, run_id)).progress is None


@pytest.mark.sqlite("PRAGMA data_version counts commits")
async def test_much_progress_costs_the_action_nothing(api):
    """... (written at most once a second): a thousand calls are no thousand commits, and no error."""

    @api.app.action(name="work")
    def work(ctx: SyncActionCtx) -> str:
        for step in range(1_000):
            ctx.progress(step / 1_000)
        return "done"

    run_id = await api.run(api.app, work)
    async with api.connection() as connection:
        before = await api.call(lambda: connection.execute("PRAGMA data_version").fetchone()[0])
        async with api.worker() as worker:
            assert await api.result(worker, run_id) == Success(return_value="done")
        after = await api.call(lambda: connection.execute("PRAGMA data_version").fetchone()[0])
    assert after - before < 50
