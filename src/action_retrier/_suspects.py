"""
Which suspects a worker may start beside those it has.

A worker's death makes suspects of its runs: one of them may have killed it. They are executed
apart, so that a run that kills its process costs the innocent ones one attempt in all.
"""

from ._ops.claims import ANY_LOSSES

PROBATION_S = 0.1
"""For how long a first-time suspect keeps others from starting beside it, see docs/decisions."""


class Suspects:
    """
    The suspects that one worker executes.

    One that has been lost once has the process to itself, as far as suspects go, for its
    probation: what kills a process mostly does so at once. One that has been lost again and
    again has it until it ends.
    """

    def __init__(self) -> None:
        self._losses: dict[object, int] = {}
        self._last_started = 0.0

    def allowance(self, now_s: float, *, of: object = None) -> int:
        """
        Return how many losses in a row a suspect may have to start now, be it a run or a callback; 0 means none may.

        Args:
            of: One that has been announced itself.
        """
        losses = [losses for key, losses in self._losses.items() if key != of]
        if not losses:
            return ANY_LOSSES
        if max(losses) > 1 or now_s - self._last_started < PROBATION_S:
            return 0
        return 1

    def announce(self, key: object) -> None:
        """Let nothing suspect start until it is known what *key* is: a claim is under way."""
        self._losses[key] = ANY_LOSSES

    def start(self, key: object, losses: int, now_s: float) -> None:
        """Note that a suspect begins."""
        self._losses[key] = losses
        self._last_started = now_s

    def end(self, key: object) -> None:
        """Note that it has ended, and with it the suspicion."""
        self._losses.pop(key, None)
