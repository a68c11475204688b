"""How soon a worker does something again: what takes long, and what was in vain."""

_FREE_S = 0.05
_SHARE = 20  # what takes longer than that is done a twentieth of the time ...
_LONGEST_REST_S = 5.0  # ... but not less often: it may have been slow for another reason
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.25


class Pace:
    """How soon something may be repeated, by how long it takes: it must not be all that is done."""

    def __init__(self) -> None:
        self._rests_until_s = 0.0
        self.last_s = float("-inf")
        """When it was done last."""

    def is_due(self, now_s: float) -> bool:
        """Whether it may be done."""
        return now_s >= self._rests_until_s

    def rest_s(self, now_s: float) -> float:
        """Return how long it may not be done yet."""
        return max(0.0, self._rests_until_s - now_s)

    def took(self, began_s: float, ended_s: float) -> None:
        """Note that it was done."""
        self.last_s = began_s
        duration_s = ended_s - began_s
        rest_s = 0.0 if duration_s < _FREE_S else duration_s * (_SHARE - 1)
        self._rests_until_s = ended_s + min(rest_s, _LONGEST_REST_S)


class Pauses:
    """
    How long to wait before the next try to take what is due.

    Somebody else may have been faster, or what is due may not be ours to take: a transaction of a
    user's holds it, or after an outage our own lease has to be renewed first.
    """

    def __init__(self) -> None:
        self._next_s = _FIRST_PAUSE_S

    def next_s(self) -> float:
        """Return the next one, after a try in vain: longer each time."""
        pause_s = self._next_s
        self._next_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        return pause_s

    def end(self) -> None:
        """Begin with short ones again: a try has brought something."""
        self._next_s = _FIRST_PAUSE_S
