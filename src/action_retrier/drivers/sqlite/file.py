"""The database's file, which may be removed or replaced while it is open: nothing would go wrong, and all be lost."""

import os
from pathlib import Path

from ...errors import DatabaseUnavailable


class DatabaseFile:
    """The file that was opened, as long as it stands under its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: os.stat_result | None = None

    def remember(self) -> None:
        """Take what stands there now for the database."""
        self._opened = self.path.stat()

    def check(self) -> None:
        """
        Refuse to go on with a file that nobody else sees.

        SQLite writes to the file that it has open, removed or not, and a new connection would make an
        empty one: what is acknowledged then is in no database that the next process opens.

        Raises:
            DatabaseUnavailable: Another file, or none, stands under the name, or none can be looked at.
        """
        try:
            there = os.stat(self.path)  # noqa: PTH116 - in half the time, before each transaction
        except FileNotFoundError:
            problem = f"{self.path} was removed while it was in use"
        except OSError as error:
            raise DatabaseUnavailable(
                problem=f"{self.path} cannot be reached any more ({error.strerror})",
                remedy="check the directories above it, their mode, and the file system that they are on",
            ) from error
        else:
            if self._opened is None or os.path.samestat(there, self._opened):
                return
            problem = f"{self.path} was replaced by another file while it was in use"
        raise DatabaseUnavailable(
            problem=problem, remedy="stop every process that uses it before you move, restore or remove a database"
        )
