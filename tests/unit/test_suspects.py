"""Which suspects a worker may start beside those it has."""

import pytest

from action_retrier._ops.claims import ANY_LOSSES
from action_retrier._suspects import PROBATION_S, Suspects

NOW_S = 1000.0


@pytest.fixture
def suspects() -> Suspects:
    return Suspects()


def test_a_worker_without_suspects_may_take_any(suspects: Suspects) -> None:
    assert suspects.allowance(NOW_S) == ANY_LOSSES


@pytest.mark.parametrize(("elapsed_s", "allowance"), [(0, 0), (PROBATION_S * 0.99, 0), (PROBATION_S, 1), (1000, 1)])
def test_a_first_time_suspect_has_its_probation_to_itself(suspects: Suspects, elapsed_s: float, allowance: int) -> None:
    """I8: after that others that have been lost once may start beside it, never those lost more often."""
    suspects.start("a", 1, NOW_S)

    assert suspects.allowance(NOW_S + elapsed_s) == allowance


@pytest.mark.parametrize("losses", [2, 3, 100])
def test_one_that_was_lost_again_has_the_worker_to_itself(suspects: Suspects, losses: int) -> None:
    suspects.start("a", losses, NOW_S)

    assert suspects.allowance(NOW_S + 10**6) == 0


def test_each_newcomer_has_a_probation(suspects: Suspects) -> None:
    suspects.start("a", 1, NOW_S)
    suspects.start("b", 1, NOW_S + 10)

    assert suspects.allowance(NOW_S + 10 + PROBATION_S / 2) == 0
    assert suspects.allowance(NOW_S + 10 + PROBATION_S) == 1


def test_the_suspicion_ends_with_the_attempt(suspects: Suspects) -> None:
    suspects.start("a", 2, NOW_S)
    suspects.start("b", 1, NOW_S)
    suspects.end("a")
    assert suspects.allowance(NOW_S + 1) == 1
    suspects.end("b")

    assert suspects.allowance(NOW_S) == ANY_LOSSES


def test_what_is_no_suspect_ends_without_notice(suspects: Suspects) -> None:
    suspects.end("a")

    assert suspects.allowance(NOW_S) == ANY_LOSSES
