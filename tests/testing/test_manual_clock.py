"""The clock that a test moves says in which unit it is moved."""

import math
from datetime import timedelta

import pytest

from action_retrier.testing import ManualClock


@pytest.mark.parametrize(
    ("ms", "told"),
    [
        (timedelta(minutes=1), r"ms must be a number of milliseconds, not .*: advance\(60000\)"),
        ("1000", "ms must be a number, not '1000'"),
        (-1, "ms must be finite and not negative, not -1"),
        (math.nan, "ms must be finite and not negative, not nan"),
        (math.inf, "ms must be finite and not negative, not inf"),
    ],
)
def test_what_is_no_number_of_milliseconds_is_refused(ms, told):
    clock = ManualClock()

    with pytest.raises((TypeError, ValueError), match=told):
        clock.advance(ms)

    assert clock.now() == ManualClock().now()
