"""Silence on PostgreSQL: told by the server's clock at once, unless that was set; then ours has to agree."""

from typing import Any

import pytest

from action_retrier.drivers.postgres.leases import LEASE_US, PostgresLeases

SECOND = 1_000_000
HOUR = 3600 * SECOND


class Judge:
    """One that looks at a worker, by a clock of its own and that of a server."""

    def __init__(self) -> None:
        nothing: Any = None
        self.leases = PostgresLeases(nothing, nothing, nothing)
        self.ours = 100 * SECOND
        self.servers = 5 * HOUR
        self.renewed_at = self.servers

    def passes(self, us: int) -> None:
        self.ours += us
        self.servers += us

    def finds_silent(self) -> bool:
        row = {"id": "w", "renewed_at": self.renewed_at, "silent_for": self.servers - self.renewed_at}
        self.leases._server_clock.compare(self.servers, self.ours)
        return self.leases._is_silent(row, self.ours, unchanged_for=self.leases._unchanged_for(row, self.ours))


@pytest.fixture
def judge() -> Judge:
    judge = Judge()
    assert not judge.finds_silent()
    return judge


def test_a_worker_is_silent_one_lease_after_its_last_renewal(judge: Judge) -> None:
    judge.passes(LEASE_US)
    assert not judge.finds_silent()
    judge.passes(1)
    assert judge.finds_silent()


def test_what_has_been_silent_before_the_first_look_is_so_at_once() -> None:
    """Whoever may judge need not watch a worker for another lease."""
    judge = Judge()
    judge.renewed_at -= LEASE_US + 1

    assert judge.finds_silent()


def test_a_clock_that_is_set_forward_makes_nobody_silent(judge: Judge) -> None:
    judge.passes(SECOND)
    judge.servers += HOUR
    assert not judge.finds_silent()
    judge.passes(2 * SECOND)
    judge.renewed_at = judge.servers  # its next heartbeat
    for _ in range(3):
        assert not judge.finds_silent()
        judge.passes(3 * SECOND)
        judge.renewed_at = judge.servers


def test_a_worker_that_dies_as_the_clock_is_set_forward_is_silent_one_lease_later(judge: Judge) -> None:
    judge.servers += HOUR
    assert not judge.finds_silent()
    judge.passes(LEASE_US - 1)
    assert not judge.finds_silent()
    judge.passes(1)
    assert judge.finds_silent()


def test_a_clock_that_is_set_back_does_not_keep_the_dead_from_being_silent(judge: Judge) -> None:
    """By that clock it has renewed in an hour from now."""
    judge.servers -= HOUR
    assert not judge.finds_silent()
    judge.passes(LEASE_US - 1)
    assert not judge.finds_silent()
    judge.passes(1)
    assert judge.finds_silent()


def test_answers_that_take_their_time_are_no_clock_that_was_set(judge: Judge) -> None:
    judge.passes(LEASE_US)
    judge.ours += SECOND  # the answer was on its way
    judge.servers += 1
    assert judge.finds_silent()
