"""Where a worker looks for due runs."""

import json
from collections.abc import Iterable

from ._codec import loads
from ._pace import Pace
from ._statements import Row

_REMEMBERED = 100


class Lanes:
    """
    The lanes (queue, action, callback, priority) that hold runs for a worker, and since when the first is due.

    To look everywhere may take long on PostgreSQL: while somebody's transaction stays open, all
    that was claimed meanwhile is walked over. In between, a worker looks where it has found
    something before, and at nothing that it has seen the end of.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, str, str, int], int] = {}
        self.pace = Pace()

    def found(self, told: str | None) -> None:
        """Note what a look everywhere has told. A lane that is empty now is remembered: a retry may come to it."""
        found = {_key(row): row["since"] for row in loads(told) or []}
        self._since = found if len(self._since) > _REMEMBERED else self._since | found

    def took(self, rows: Iterable[Row]) -> None:
        """Note what was claimed: what fell due before is gone, but for what will be found by the next look."""
        for row in rows:
            key = _key(row)
            self._since[key] = max(self._since.get(key, 0), row["due_at"])

    def to_json(self) -> str:
        """Return them as the statements take them."""
        return json.dumps(
            [
                {"queue": queue, "action": action, "on_complete": on_complete, "priority": priority, "since": since}
                for (queue, action, on_complete, priority), since in self._since.items()
            ]
        )


def _key(row: Row) -> tuple[str, str, str, int]:
    return row["queue"], row["action"], row["on_complete"], row["priority"]
