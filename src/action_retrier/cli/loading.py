"""Find what a command is about: ``MODULE:APP``, or a database by its URL."""

import dataclasses
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import config
from .._clock import SystemClock
from .._policy import check_namespace
from ..app import App
from ..drivers import Database, open_database
from .terminal import clean


class WrongUsage(Exception):
    """The command was given what it cannot work with; the message is for people."""


@contextmanager
def as_usage() -> Iterator[None]:
    """Turn a complaint about a value that was given into `WrongUsage`."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise WrongUsage(str(error)) from error


def find_app(app: str | None, database: str | None, namespace: str | None) -> App:
    """
    Return the App that ``--app``, ``--database`` and ``--namespace`` mean.

    Raises:
        WrongUsage: They cannot be used, or there is no such database yet: looking creates none.
    """
    found = make_app(app, database, namespace)
    with as_usage():  # only now is a Django alias looked up
        exists = database_of(found).exists()
    if not exists:
        raise WrongUsage(
            f"no such database: {found.location} (check --database; a worker or `action-retrier migrate` creates it)"
        )
    return found


def make_app(app: str | None, database: str | None, namespace: str | None) -> App:
    """Return the App that the options mean, whether or not there is such a database. Raises `WrongUsage`."""
    if app is None:
        if database is not None and database.startswith("django:"):
            _set_up_django(database)
        with as_usage():
            # Whoever only looks does not change the schema of a database that others use.
            return App(database, namespace="default" if namespace is None else namespace, auto_migrate=False)
    location = None
    if database is not None:
        with as_usage():
            location = open_database(database, clock=SystemClock(), auto_migrate=False).location
        config.set_database_url(database)  # for an App that is made without one
    found = load_app(app)
    if location is not None and location != found.location:
        raise WrongUsage(
            f"{app} works on {found.location} and not on {location}: leave --database out, "
            "or make the App without a database, so that it takes the one that it is told"
        )
    if namespace is not None:
        with as_usage():
            check_namespace(namespace)
        found._engine = dataclasses.replace(found._engine, namespace=namespace)  # noqa: SLF001 - one house
    return found


def database_of(app: App) -> Database:
    """Return the database of *app*."""
    return app._database  # noqa: SLF001 - one house


def load_app(target: str) -> App:
    """Import ``MODULE:APP``. Raises `WrongUsage`."""
    name, _, path = target.partition(":")
    if "/" in name or name.endswith(".py"):
        module = name.removesuffix(".py").strip("./").replace("/", ".")
        raise WrongUsage(f"{target!r} names a file: name the module, such as {module}:{path or 'app'}")
    if not all(part.isidentifier() for part in (*name.split("."), *path.split("."))):
        raise WrongUsage(f"{target!r} is not of the form MODULE:APP, such as shop.jobs:app")
    misfit = _misfit_of_django(name)
    found: object = _import(name, misfit)
    for part in path.split("."):
        if not hasattr(found, part):
            apps = sorted(key for key, value in vars(sys.modules[name]).items() if isinstance(value, App))
            there = ", ".join(f"{name}:{one}" for one in apps) or "none"
            raise WrongUsage(f"module {name!r} has no attribute {path!r}; Apps in it: {there}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise WrongUsage(f"{target!r} is not an App but of type {type(found).__name__!r}")
    if misfit is not None and database_of(found).url.startswith("django:") and not _is_django_set_up():
        raise misfit
    return found


def load_module(name: str) -> object:
    """Import a module, the current directory first, and after Django's settings, if any. Raises `WrongUsage`."""
    return _import(name, _misfit_of_django(name))


def _import(name: str, misfit: WrongUsage | None) -> object:
    here = _look_here_first()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise WrongUsage(f"no module named {missing!r} in {here} or on Python's path") from error
        problem = _explain(name, error)
        # Whether the one comes of the other, people see better: a module need not use Django.
        raise WrongUsage(problem if misfit is None else f"{misfit}; and {problem}") from error


def _misfit_of_django(what: str) -> WrongUsage | None:
    """Set Django up if its settings are named; return why that fails: many programs only inherit the variable."""
    if config.django_settings() is None or importlib.util.find_spec("django") is None:
        return None
    try:
        _set_up_django(what)
    except WrongUsage as error:
        config.logger.debug("%s; going on without it", error)
        return error
    return None


def _look_here_first() -> str:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return here


def _set_up_django(what: str) -> None:
    """Do what a Django project's own commands do first: models cannot be imported before. Raises `WrongUsage`."""
    settings = config.django_settings()
    if settings is None:
        raise WrongUsage(f"{what} needs Django's settings: set ${config.DJANGO_SETTINGS_VARIABLE}, or pass --app")
    _look_here_first()
    try:
        from ..drivers.django import set_up  # noqa: PLC0415 - only who uses Django needs it

        set_up()
    except (Exception, SystemExit) as error:
        raise WrongUsage(f"Django cannot be set up: {_explain(settings, error)}") from error


def _is_django_set_up() -> bool:
    from ..drivers.django import is_set_up  # noqa: PLC0415 - only who uses Django needs it

    return is_set_up()


def _explain(name: str, error: BaseException) -> str:
    """Say in one line why a module could not be imported, and in which line of the user's own code."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    theirs = [one for one in frames if Path(one.filename).is_relative_to(Path.cwd())] or frames[-1:]
    where = f" ({_relative(theirs[-1].filename)}, line {theirs[-1].lineno})" if theirs else ""
    if isinstance(error, SyntaxError):
        where = f" ({_relative(error.filename or '?')}, line {error.lineno})"
        error = type(error)(error.msg)
    return f"module {name!r} cannot be imported: {type(error).__name__}: {clean(str(error))}{where}"


def _relative(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
