"""The command line with a Django project: a worker and the other commands need no program around them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = """
INSTALLED_APPS = ["shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.db"}}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "INFO"},
}
"""
MODELS = """
from django.db import models

class Order(models.Model): ...
"""
JOBS = """
from action_retrier import App
from shop.models import Order

app = App("django:default")

@app.action
def charge(order_id: int) -> None: ...
"""


@pytest.fixture(autouse=True)
def _project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "settings.py").write_text(SETTINGS, encoding="utf-8")
    (folder / "shop").mkdir()
    for name, text in (("__init__", ""), ("models", MODELS), ("jobs", JOBS)):
        (folder / "shop" / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "settings")


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own: Django is set up only once in each."""
    return subprocess.run(
        [sys.executable, "-m", "action_retrier", *arguments], capture_output=True, text=True, check=False
    )


def test_an_app_beside_models_is_found_by_the_settings_in_the_environment() -> None:
    assert command("migrate", "--app", "shop.jobs:app").returncode == 0

    listed = command("list", "--app", "shop.jobs:app", "--json")

    assert (listed.returncode, listed.stderr) == (0, "")
    assert json.loads(listed.stdout)["runs"] == []


def test_a_worker_of_a_django_project_needs_no_program_and_logs_each_line_once(start) -> None:
    """Django's settings configure logging after our own handler is there."""
    worker = start("worker", "shop.jobs:app")

    worker.hear("is ready: 1 action")
    worker.itself.terminate()

    assert worker.wait() == 0
    assert len([line for line in worker.err if "has stopped" in line]) == 1


def test_an_alias_is_a_database_for_the_commands_that_only_look() -> None:
    assert command("migrate", "--database", "django:default").returncode == 0
    assert command("list", "--database", "django:default").returncode == 0
    told = json.loads(command("doctor", "--database", "django:default", "--json").stdout)
    assert told["database"].startswith("django:default")


def test_an_alias_without_settings_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")

    said = command("list", "--database", "django:default")

    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == "Error: django:default needs Django's settings: set $DJANGO_SETTINGS_MODULE, or pass --app\n"


def test_an_alias_that_django_does_not_know_is_refused_in_a_line() -> None:
    said = command("list", "--database", "django:archive")

    assert said.returncode == 2
    assert said.stderr == "Error: database 'django:archive': Django's DATABASES has no 'archive'\n"


@pytest.mark.parametrize("target", ["shop.jobs:app", "aliased:app"])
def test_settings_that_cannot_be_imported_are_told_in_a_line_where_they_are_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """By the module of the App, or only by its database."""
    (folder / "aliased.py").write_text("from action_retrier import App\n\napp = App('django:default')\n", "utf-8")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "nowhere")

    said = command("list", "--app", target)

    assert said.returncode == 2
    assert said.stderr.startswith("Error: Django cannot be set up: module 'nowhere' cannot be imported")
    assert len(said.stderr.splitlines()) == 1


def test_settings_that_cannot_be_imported_are_no_matter_to_who_does_not_use_django(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that serves several projects has the variable set for all of them."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "nowhere")
    assert command("migrate", "--app", "job:app").returncode == 0

    listed = command("list", "--app", "job:app", "--json")

    assert (listed.returncode, listed.stderr) == (0, "")
    (folder / "wrong.py").write_text("1 / 0", encoding="utf-8")
    assert "module 'wrong' cannot be imported: ZeroDivisionError" in command("list", "--app", "wrong:app").stderr
