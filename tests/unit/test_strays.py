"""Which attempts that a worker owns nobody executes."""

import pytest

from action_retrier._strays import Strays

ONE, OTHER = ("one", 1), ("other", 1)


def test_what_two_looks_find_is_a_stray() -> None:
    """I1: a claim was committed, and its answer lost: nobody executes what it took."""
    strays = Strays()

    assert strays.judge("w", {ONE}, asked=3, answered=3) == set()
    assert strays.judge("w", {ONE, OTHER}, asked=4, answered=3) == {ONE}


@pytest.mark.parametrize(("answered", "found"), [(3, set()), (4, {ONE})])
def test_a_claim_under_way_may_have_brought_it(answered: int, found: set[tuple[str, int]]) -> None:
    """I8: else it would be given back, and executed at the same time. Under load there is always one under way."""
    strays = Strays()
    strays.judge("w", {ONE}, asked=4, answered=3)

    assert strays.judge("w", {ONE}, asked=5, answered=answered) == found


def test_what_has_become_known_is_none() -> None:
    strays = Strays()
    strays.judge("w", {ONE}, asked=1, answered=0)

    assert strays.judge("w", set(), asked=1, answered=1) == set()
    assert strays.judge("w", {ONE}, asked=1, answered=1) == set()  # two looks in a row


def test_another_incarnation_begins_anew() -> None:
    strays = Strays()
    strays.judge("w", {ONE}, asked=1, answered=1)

    assert strays.judge("heir", {ONE}, asked=1, answered=1) == set()
