"""`App("django:ALIAS")` in a Django project, run by Django's own test runner."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import connections, transaction

from action_retrier import App, InvalidContext, SyncActionRetrier
from action_retrier.drivers.django.address import url_of

from ..stores import SYSTEMS, open_system, postgres_url
from .handle_kinds import add_alias

SETTINGS = """
DATABASES = {{"default": {database!r}}}
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""

MODELS = """
from django.db import models

class Note(models.Model):
    text = models.TextField(unique=True)
"""

JOBS = """
import threading
import psycopg
from action_retrier import App, SyncActionRetrier
from action_retrier.testing import ManualClock
from django.db import connection, transaction

dying = App("django:default", clock=ManualClock(), namespace="dying")
app = App("django:default")  # before there are settings that it could read
retrier = SyncActionRetrier(app)
found_open, told, tries = [], [], []

@app.action(name="charge")
def charge(order_id: int) -> int:
    from shop.models import Note
    found_open.append(connection.connection is not None)
    return Note.objects.count()

@app.mutation(name="receipt")
def receipt(ctx, run_id: str):
    from shop.models import Note
    Note.objects.create(text=run_id)
    retrier.status(connection, run_id)

@dying.action(name="ship")
def ship() -> None: ...

@dying.mutation(name="shipped")
def shipped(ctx, run_id: str, context: int):
    from shop.models import Note
    tries.append(run_id)
    Note.objects.create(text=run_id)
    if tries.count(run_id) <= context:
        raise LookupError(context)

@app.mutation(name="shared", isolation="read committed")
def shared(ctx, run_id: str, context: str):
    from shop.models import Note
    Note.objects.create(text=run_id)
    transaction.on_commit(lambda: told.append(run_id))
    if context:
        Note.objects.create(text=context)

@app.mutation(name="note")
def note(ctx, text: str, how: str = ""):
    from shop.models import Note
    Note.objects.create(text=text)
    if how == "rolls back":
        transaction.set_rollback(True)
    if how == "raises":
        raise LookupError(text)
    if how == "commits":
        transaction.commit()
    if how == "fails in a hook":
        def fail():
            raise psycopg.errors.SerializationFailure("in a hook")
        transaction.on_commit(fail)
    if how == "commits behind Django":
        ctx.db.execute("COMMIT")

release, released = threading.Event(), threading.Event()

@app.mutation(name="slow", timeout_ms=50)
def slow(ctx, text: str):
    from shop.models import Note
    Note.objects.create(text=text)
    if not release.is_set():
        release.wait(0.1 if text == "here" else 30)
        released.set()
"""

TESTS = """
import asyncio, contextlib
from concurrent.futures import ThreadPoolExecutor
import psycopg
from django.core.cache import cache
from django.db import connection, connections, transaction
from django.test import TestCase, TransactionTestCase
from action_retrier import (
    ActionRetrier, Canceled, Completed, InProgress, InvalidContext, RunNotFound, Success, SyncActionRetrier
)
from action_retrier.testing import crash_at, failpoints, run_until_idle_sync
from jobs import (
    app, charge, dying, found_open, note, receipt, release, released, retrier, shared, ship, shipped, slow, told
)
from shop.models import Note


def texts():
    return sorted(Note.objects.values_list("text", flat=True))


class TestsInATransaction(TestCase):
    # Each is rolled back, and with it what it starts.

    def test_one(self):
        self.assertEqual(retrier.list(connection).runs, [])
        run_id = retrier.run(connection, charge, {"order_id": 1})
        self.assertEqual(retrier.status(connection, run_id), InProgress())
        self.assertTrue(retrier.cancel(connection, run_id))

    test_two = test_one

    def test_a_mutation_is_a_block_of_the_tests_own(self):
        app.run_mutation_sync(note, {"text": "mine"})
        self.assertEqual(texts(), ["mine"])
        with self.assertRaises(LookupError):
            app.run_mutation_sync(note, {"text": "theirs", "how": "raises"})
        self.assertEqual(texts(), ["mine"])
        with app.transaction() as ctx:
            run_id = retrier.run(ctx, charge, {"order_id": 1})
        self.assertEqual(retrier.status(connection, run_id), InProgress())


class TestsWithAWorker(TransactionTestCase):
    def setUp(self):
        self.enterContext(contextlib.closing(app._database))

    def test_a_callback_writes_through_the_models(self):
        with app.worker(concurrency=1) as worker:
            with transaction.atomic():
                Note.objects.create(text="mine")
                runs = [retrier.run(connection, charge, {"order_id": n}, on_complete=receipt) for n in range(3)]
            for run_id in runs:
                self.assertIsInstance(retrier.wait(app, run_id), Success)
            worker.until_idle()
            self.assertEqual(texts(), sorted(["mine", *runs]))
        self.assertEqual(found_open[-3:], [False] * 3)  # the thread is the same, and its connection was closed

    def test_callbacks_that_share_a_transaction_do_not_share_an_error(self):
        Note.objects.create(text="taken")
        with transaction.atomic():
            runs = [
                retrier.run(connection, charge, {"order_id": n}, on_complete=shared, context="taken" * (n == 2))
                for n in range(5)
            ]
        with app.worker() as worker:
            worker.until_idle()
        good = sorted(run_id for run_id in runs if run_id != runs[2])
        self.assertEqual(texts(), sorted([*good, "taken"]))
        self.assertEqual([run.id for run in retrier.list(app, callback="pending").runs], [runs[2]])
        self.assertEqual(sorted(told), good)  # hooks of what was undone are forgotten
        retrier.cleanup(app, runs[2], discard_callback=True)

    def test_what_ends_the_transaction_is_an_error(self):
        for how in ("rolls back", "commits", "commits behind Django", "raises"):
            with self.assertRaises((RuntimeError, transaction.TransactionManagementError, LookupError)):
                app.run_mutation_sync(note, {"text": how, "how": how})
            with self.assertRaises((RuntimeError, transaction.TransactionManagementError, LookupError)):
                asyncio.run(app.run_mutation(note, {"text": how + "!", "how": how}))
        self.assertEqual(texts(), ["commits behind Django", "commits behind Django!"])
        asyncio.run(app.run_mutation(note, {"text": "next"}))
        self.assertIn("next", texts())

    def test_hooks_run_after_the_commit(self):
        told = []
        with app.transaction():
            transaction.on_commit(lambda: told.append(Note.objects.count()))
            Note.objects.create(text="mine")
            self.assertEqual(told, [])
        self.assertEqual(told, [1])

    def test_a_mutation_is_not_done_again_for_its_hooks_sake(self):
        with self.assertRaises(psycopg.errors.SerializationFailure):
            app.run_mutation_sync(note, {"text": "mine", "how": "fails in a hook"})
        with self.assertRaises(psycopg.errors.SerializationFailure):
            asyncio.run(app.run_mutation(note, {"text": "theirs", "how": "fails in a hook"}))
        self.assertEqual(texts(), ["mine", "theirs"])

    def test_what_cannot_hold_a_call_is_refused(self):
        before = retrier.list(app).runs  # Django flushes its own tables between tests, not ours
        for ctx, words in ((connection, "outside of atomic"), (connections["default"], "outside of atomic")):
            with self.assertRaisesRegex(InvalidContext, words):
                retrier.run(ctx, charge, {"order_id": 1})
        with contextlib.suppress(ValueError), transaction.atomic():
            with contextlib.suppress(LookupError), transaction.atomic(savepoint=False):
                raise LookupError
            with self.assertRaisesRegex(InvalidContext, "failed"):
                retrier.run(connection, charge, {"order_id": 1})
            raise ValueError
        with self.assertRaisesRegex(InvalidContext, "SyncActionRetrier"):
            asyncio.run(ActionRetrier(app).run(connection, charge, {"order_id": 1}))
        self.assertEqual(retrier.list(app).runs, before)

        async def enter():
            async with app.transaction():
                raise AssertionError

        with self.assertRaisesRegex(InvalidContext, "with app.transaction"):
            asyncio.run(enter())

    def test_a_connection_that_cannot_be_used_is_refused(self):
        with ThreadPoolExecutor() as threads, transaction.atomic():
            call = threads.submit(retrier.run, connections["default"], charge, {"order_id": 1})
            with self.assertRaisesRegex(InvalidContext, "of another thread"):
                call.result()
        with transaction.atomic():
            connection.close()
            with self.assertRaisesRegex(InvalidContext, "closed inside its atomic block"):
                retrier.run(connection, charge, {"order_id": 1})
        with self.assertRaisesRegex(InvalidContext, "holds no transaction"):
            retrier.run(cache, charge, {"order_id": 1})

    def test_a_worker_that_dies_anywhere_has_its_callback_done_once(self):
        # By how often the callback raises: called with the outcome, alone after that, and alone once more.
        steps = {"claim": 0, "action": 0, "report": 0, "callback": 0,
                 "callback_claim": 1, "callback_done": 1, "callback_postponed": 2}
        points = [point for point in failpoints() if point.partition(".")[0] in steps]
        self.assertEqual(len(points), 19)
        with dying:
            for point in points:
                with self.subTest(point):
                    context = steps[point.partition(".")[0]]
                    run_id = SyncActionRetrier(dying).run(dying, ship, on_complete=shipped, context=context)
                    with crash_at(dying, point):
                        run_until_idle_sync(dying, jump=True)
                    run_until_idle_sync(dying, jump=True)
                    run = SyncActionRetrier(dying).get(dying, run_id)
                    self.assertEqual((run.state, run.callback.state), ("succeeded", "done"))
                    self.assertEqual(texts().count(run_id), 1)

    def test_a_mutation_that_takes_too_long_is_rolled_back(self):
        # In this very thread nobody can take it away; in another one its connection is closed once it returns.
        with self.assertRaisesRegex(Exception, "timeout_ms=50"):
            app.run_mutation_sync(slow, {"text": "here"})
        with self.assertRaisesRegex(Exception, "timeout_ms=50"):
            asyncio.run(app.run_mutation(slow, {"text": "there"}))
        release.set()
        self.assertTrue(released.wait(30))
        asyncio.run(app.run_mutation(slow, {"text": "next"}))
        self.assertEqual(texts(), ["next"])

    def test_async_functions_are_no_mutations(self):
        async def wrong(ctx): ...
        with self.assertRaisesRegex(ValueError, "use def"):
            app.mutation(name="wrong")(wrong)
"""


def database_settings(system: str, folder: Path) -> dict[str, Any]:
    if system == "sqlite":
        file, test = folder / "shop.db", folder / "test_shop.db"
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file), "TEST": {"NAME": str(test)}}
    told = psycopg.conninfo.conninfo_to_dict(postgres_url())
    keys = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    found = {keys[name]: value for name, value in told.items() if name in keys}
    test = {"NAME": f"test_{folder.name.replace('-', '_')}"[-60:].lower()}
    return {"ENGINE": "django.db.backends.postgresql", **found, "TEST": test}


def write_project(scripts: Any, database: dict[str, Any]) -> None:
    scripts.write("settings.py", SETTINGS.format(database=database))
    scripts.write("shop/__init__.py", "")
    scripts.write("shop/models.py", MODELS)
    scripts.write("jobs.py", JOBS)
    scripts.write("shop/tests.py", TESTS)


@pytest.mark.parametrize("on", ["sqlite", "postgres"])
def test_a_projects_tests_run(scripts: Any, tmp_path: Path, on: str) -> None:
    """TestCase, TransactionTestCase, a worker in their process; and the runner can remove the database afterwards."""
    write_project(scripts, database_settings(on, tmp_path))

    done = scripts.run("-W", "error::ResourceWarning", "-m", "django", "test", "--settings=settings", "-v2")

    assert "Ran 13 tests" in done.stderr
    assert "in use" not in done.stdout + done.stderr


def test_a_test_database_in_memory_is_refused_with_the_remedy(scripts: Any, tmp_path: Path) -> None:
    """No other connection reaches it, and runs have to be seen by workers."""
    database = database_settings("sqlite", tmp_path)
    del database["TEST"]
    write_project(scripts, database)
    scripts.write(
        "shop/tests.py",
        """
        from django.test import TestCase
        from django.db import connection
        from jobs import charge, retrier

        class Tests(TestCase):
            def test(self):
                with self.assertRaisesRegex(ValueError, "TEST.*NAME"):
                    retrier.run(connection, charge, {"order_id": 1})
        """,
    )

    scripts.run("-m", "django", "test", "--settings=settings")


def test_an_app_may_be_made_before_django_is_configured() -> None:
    app = App("django:default")

    assert "django:default" in repr(app)
    assert app._database.url == "django:default"
    app._database.close()  # which had nothing open
    with pytest.raises(ValueError, match="names no alias"):
        App("django:")


def test_an_app_follows_its_alias(tmp_path: Path) -> None:
    """Django's tests have it lead elsewhere; what was open at the old place is closed."""
    app = App("django:follows")
    places = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        with contextlib.closing(open_system("sqlite", folder)) as system:
            add_alias("follows", system)
            with contextlib.suppress(AttributeError):
                del connections["follows"]
            app._database.open()
            places.append(app._database.underneath)  # type: ignore[attr-defined]
            assert str(folder) in app.location
    first, second = places
    assert (first._pid, second._pid) == (0, os.getpid())
    app._database.close()


def test_a_connection_on_another_system_is_refused(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        sqlite, postgres = (stack.enter_context(contextlib.closing(open_system(one, tmp_path))) for one in SYSTEMS[:2])
        add_alias("elsewhere", sqlite)
        app = App(postgres.url)
        app.action(name="charge")(charge)
        stack.callback(app._database.close)
        with (
            transaction.atomic(using="elsewhere"),
            pytest.raises(InvalidContext, match="on sqlite, by sqlite3, which the app cannot use"),
        ):
            SyncActionRetrier(app).run(connections["elsewhere"], "charge")
        connections["elsewhere"].close()


def charge() -> None: ...


def test_the_role_that_django_assumes_is_assumed() -> None:
    settings = {"NAME": "shop", "USER": "web", "OPTIONS": {"assume_role": "clerk", "options": "-c geqo=off"}}
    url = url_of(SimpleNamespace(vendor="postgresql", alias="default", settings_dict=settings))

    found = psycopg.conninfo.conninfo_to_dict(url)

    assert found == {"dbname": "shop", "user": "web", "options": "-c geqo=off -c role=clerk"}
