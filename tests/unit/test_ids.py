"""Identifiers: UUIDs of version 7 that sort by age, in one canonical form."""

import threading
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from action_retrier import _ids
from action_retrier._ids import is_run_id, new_run_id, new_worker_id
from action_retrier.testing import ManualClock


@pytest.fixture(autouse=True)
def fresh_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids never go back in a process; each test here is one."""
    monkeypatch.setattr(_ids, "_last_tick", 0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 3, 4, 5, 6, 7, 891_234, tzinfo=UTC))


def test_an_id_is_a_uuid_of_version_7_with_the_time_in_it(clock: ManualClock) -> None:
    """RFC 9562, section 5.7, with the fraction of the millisecond in the next twelve bits."""
    text = new_run_id(clock)
    parsed = uuid.UUID(text)

    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert str(parsed) == text
    assert parsed.int >> 80 == clock.now_us() // 1000
    assert (parsed.int >> 64) & 0xFFF == 234 * 4096 // 1000


def test_ids_of_one_instant_are_different_and_rise(clock: ManualClock) -> None:
    """Also past the end of a millisecond's fraction: 10,000 of them are more than it has room for."""
    ids = [new_run_id(clock) for _ in range(10_000)]

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {uuid.UUID(one).version for one in ids} == {7}


def test_ids_rise_with_time(clock: ManualClock) -> None:
    ids = []
    for _ in range(100):
        ids.append(new_run_id(clock))
        clock.advance(0.25)

    assert ids == sorted(ids)


def test_ids_rise_even_when_the_clock_is_set_back(clock: ManualClock) -> None:
    """Listings are by id: what was started later stands later."""
    first = new_run_id(clock)
    second = new_run_id(ManualClock(datetime(2020, 1, 1, tzinfo=UTC)))

    assert second > first


def test_ids_of_many_threads_are_different(clock: ManualClock) -> None:
    ids: list[str] = []
    barrier = threading.Barrier(4)

    def make() -> None:
        barrier.wait()
        ids.extend([new_run_id(clock) for _ in range(500)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(ids)) == 2000


def test_two_processes_do_not_make_the_same_id(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """62 bits are random: the instant alone tells nobody apart."""
    ids = set()
    for _ in range(100):
        monkeypatch.setattr(_ids, "_last_tick", 0)
        ids.add(new_run_id(clock))

    assert len(ids) == 100


def test_an_id_of_the_last_year_is_still_one() -> None:
    text = new_run_id(ManualClock(datetime(9999, 12, 31, tzinfo=UTC)))

    assert is_run_id(text)
    assert uuid.UUID(text).version == 7


def test_a_workers_id_is_a_random_uuid() -> None:
    """Every incarnation has its own."""
    ids = {new_worker_id() for _ in range(100)}

    assert len(ids) == 100
    assert {uuid.UUID(one).version for one in ids} == {4}
    assert all(str(uuid.UUID(one)) == one for one in ids)


CANONICAL = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize("text", [CANONICAL, "0" * 8 + "-0000-0000-0000-" + "0" * 12, str(uuid.UUID(int=7, version=4))])
def test_the_canonical_form_may_be_an_id(text: str) -> None:
    assert is_run_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        CANONICAL.upper(),
        CANONICAL.replace("-", ""),
        f"{{{CANONICAL}}}",
        f"urn:uuid:{CANONICAL}",
        f" {CANONICAL}",
        f"{CANONICAL}\n",
        CANONICAL[:-1],
        f"{CANONICAL}0",
        CANONICAL.replace("a", "g", 1),
        CANONICAL.replace("0", "٠", 1),
        CANONICAL.replace("0", "\0", 1),
        "' OR 1=1 --",
        "x" * 10**6,
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_no_other_form_is_one(text: str) -> None:
    """Anything else is unknown without asking the database."""
    assert not is_run_id(text)


@pytest.mark.parametrize("value", [None, 7, b"01890a5d-ac96-774b-bcce-b302099a8057", uuid.UUID(CANONICAL)], ids=repr)
def test_what_is_no_string_is_no_id(value: Any) -> None:
    assert not is_run_id(value)
