"""What a worker owns and does not know of: the safety net under claims that went wrong."""

from collections.abc import Set as AbstractSet

from ._execution import Key


class Strays:
    """
    Tells which attempts of a worker's nobody executes, by two looks.

    What a claim brings is known once it is answered, and under load there is always one under way. So an attempt that
    one look has found and nobody knew of is a stray if the next one finds it too, and each claim that may have
    brought it had been answered before that.
    """

    def __init__(self) -> None:
        self._worker = ""
        self._asked = 0
        self._unknown: AbstractSet[Key] = frozenset()

    def judge(self, worker: str, unknown: AbstractSet[Key], *, asked: int, answered: int) -> set[Key]:
        """
        Return those of *unknown* that are strays for sure, and remember this look.

        Args:
            unknown: Attempts that are *worker*'s in the database, and not known here.
            asked: How many claims there had been when they were read.
            answered: Of how many all was known, that they have brought, when this look began.
        """
        is_told = self._worker == worker and self._asked <= answered
        strays = set(unknown & self._unknown) if is_told else set()
        self._worker, self._asked, self._unknown = worker, asked, unknown
        return strays
