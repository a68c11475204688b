"""Medians, percentiles, and how far a ratio can be trusted. Pure."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 5000
SEED = 20261201


@dataclass(frozen=True)
class Spread:
    """A figure that was taken several times."""

    median: float
    low: float  # of the 95 % interval of the median
    high: float
    least: float
    most: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float], seed: int = SEED) -> Spread:
    """
    Return the median with its bootstrap interval.

    The interval holds the median of 95 % of *RESAMPLES* samples drawn from *values* with replacement; it is as wide as
    the values where there are but a few of them.
    """
    assert values, "nothing was measured"
    generator = random.Random(seed)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Spread(
        median=statistics.median(values),
        low=medians[int(0.025 * RESAMPLES)],
        high=medians[int(0.975 * RESAMPLES) - 1],
        least=min(values),
        most=max(values),
        count=len(values),
    )


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return one ratio for each pair that was measured one after the other."""
    return [one / other for one, other in zip(ours, theirs, strict=False) if other]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that *percent* of the values do not exceed, interpolated."""
    ordered = sorted(values)
    assert ordered, "nothing was measured"
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
