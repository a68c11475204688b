"""How long a run may back off, by what the guide says, and not by the code that does it."""

from typing import Any

_YEAR_MS = 365 * 86_400_000
FOREVER_MS = 1000 * _YEAR_MS
"""No delay is longer."""


def backoff_us(options: dict[str, Any], failures: int) -> tuple[int, int]:
    """Return the least and the most that a policy has a run wait after so many failures; as the user's guide says it."""
    bound = options["max_backoff_ms"]
    bound = _YEAR_MS if bound is None else bound
    try:
        nominal = min(bound, options["initial_backoff_ms"] * float(options["base"]) ** (failures - 1))
    except OverflowError:
        nominal = bound
    least, most = (min(FOREVER_MS, nominal * (1 + sign * options["jitter"])) * 1000 for sign in (-1, 1))
    return int(least), int(most) + 1
