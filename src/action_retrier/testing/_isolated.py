"""An App that is made at import, lent to a test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from .._clock import Clock
from .._worker import Engine
from ..app import App, check_colour
from ..drivers import Address, open_database
from ._app import check_app


@contextmanager
def isolated(app: App, database: "Address", *, clock: Clock | None = None) -> Iterator[App]:
    """
    Have an App work on another database, and by another clock, inside the block.

    Its functions, and the retriers made of it, stay; what it works on is restored at the end.

    Args:
        app: It must not be open: what it holds open belongs to another database.
        database: As `App` takes it.
        clock: None for its own.

    Raises:
        RuntimeError: The app is open.
        ValueError: The database cannot be used, or cannot serve the app's mutations.

    Example:
        >>> app = App("sqlite:///production.db")
        >>> with isolated(app, "sqlite:///test.db"):
        ...     print(app)
        <App on ...test.db, namespace 'default'>
        >>> app
        <App on ...production.db, namespace 'default'>
    """
    check_app(app)
    before = app._engine
    if before.database.is_open:
        raise RuntimeError(
            f"{app!r} is open: leave its `with` block first. {_who_opened(before.database)}. `with app: pass` closes "
            "it; isolate the app in a fixture with autouse=True, and no test forgets it"
        )
    clock = before.clock if clock is None else clock
    opened = open_database(database, clock=clock, auto_migrate=True)
    for mutation in before.registry.mutations.values():
        check_colour(mutation.signature, opened)
    app._engine = Engine.on(
        opened, before.registry, clock, namespace=before.namespace, retention_us=before.retention_us
    )
    try:
        yield app
    finally:
        app._engine = before
        opened.close()
        _note_who_opens(before.database)


_opened_in: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""Of databases that Apps were isolated from: the test that has opened them nevertheless."""


def _note_who_opens(database: Any) -> None:
    """From now on, know whose first use opens a database that tests should not use: another test will be refused."""
    open_it = database.open
    if getattr(open_it, "notes", False):
        return

    def noting() -> None:
        if not database.is_open:
            # Not one for config: pytest changes it with each test.
            _opened_in[database] = os.environ.get("PYTEST_CURRENT_TEST", "")  # noqa: TID251
        open_it()

    noting.notes = True  # type: ignore[attr-defined]
    database.open = noting


def _who_opened(database: Any) -> str:
    if test := _opened_in.get(database):
        return f"It was opened in {test}, which has not isolated it"
    return "Without one, an earlier test, or a module, has used the app without isolating it, which opened it"
