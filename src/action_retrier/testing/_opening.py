"""What stands between an App and the opening of its database, in a test: it says when a migration is where."""

import sys
import threading
from collections.abc import Callable
from typing import Any


def watch_opening(
    database: Any, reach: Callable[[str], None], shadow: Callable[[Any, str, Callable[[Any], Any]], None]
) -> None:
    """
    Tell when the opening of a database comes to a moment of `migrate`.

    Args:
        reach: Called with the moment, in the thread that opens.
        shadow: As `Watch.shadow`.
    """
    module = sys.modules[type(database).__module__]
    commits_itself = "postgres" in module.__name__
    opening: set[int] = set()  # threads; the functions of the module are other databases' as well

    def reach_if_ours(moment: str) -> None:
        if threading.get_ident() in opening:
            reach(moment)

    def noting_threads(original: Any) -> Any:
        def open_() -> None:
            opening.add(threading.get_ident())
            try:
                original()
            finally:
                opening.discard(threading.get_ident())

        return open_

    def migrating(original: Any) -> Any:
        def migrate(connection: Any, *schema: str) -> None:
            reach_if_ours("before")
            original(_Statements(connection, reach_if_ours), *schema)
            if not commits_itself:
                reach_if_ours("before_commit")

        return migrate

    def reading(original: Any) -> Any:
        def read_meta(*args: Any) -> Any:
            reach_if_ours("after_commit")  # what follows in any case
            return original(*args)

        return read_meta

    shadow(database, "open", noting_threads)
    shadow(module, "migrate", migrating)
    shadow(module, "read_meta", reading)


class _Statements:
    """A connection that says which statements a migration comes to."""

    def __init__(self, connection: Any, reach: Callable[[str], None]) -> None:
        self._connection = connection
        self._reach = reach

    def execute(self, *args: Any) -> Any:
        self._reach("before_commit" if args == ("COMMIT",) else "statement")
        return self._connection.execute(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
