"""An App that is made at import, lent to a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from .._clock import Clock
from .._worker import Engine
from ..app import App, check_colour
from ..drivers import Address, open_database


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
    before = app._engine
    if before.database.is_open:
        raise RuntimeError(
            f"{app!r} is open: leave its `with` block first; one that was opened by its first use is closed by "
            "`with app: pass`"
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
