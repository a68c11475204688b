"""A COMMIT that got no answer: what is known of it."""

from dataclasses import dataclass
from typing import Literal

from ...errors import DatabaseUnavailable
from .urls import Target

Fate = Literal["committed", "rolled back", "unknown"]


@dataclass(frozen=True, slots=True)
class Mark:
    """
    By what a transaction is found again.

    Attributes:
        xid: Its id.
        server_started, checkpoint: Of which life of the server that id is.
    """

    xid: str
    server_started: str
    checkpoint: str


class CommitInDoubt(Exception):
    """The connection failed during COMMIT."""

    def __init__(self, target: Target, mark: Mark | None) -> None:
        super().__init__(f"{target.location}: the connection was lost during COMMIT")
        self.target = target
        self.mark = mark
        self.fate: Fate = "unknown"

    def unresolved(self) -> DatabaseUnavailable:
        """Return what a caller is told whose transaction has not committed, as far as anybody can tell."""
        if self.fate == "rolled back":
            return DatabaseUnavailable(problem=f"{self}, and the server rolled back", remedy="do it again")
        return DatabaseUnavailable(
            problem=f"{self}, and whether that happened is not known",
            remedy="look whether it did before you do it again",
        )
