"""The demo's receiver misbehaves as planned, and its ledger says how."""

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from threading import Thread

import pytest

from action_retrier.demo.evidence import read_ledger
from action_retrier.demo.plan import Event, Mishap, Plan
from action_retrier.demo.receiver import Ledger, Receiver

CHARGE = {"id": "evt_1", "type": "order.paid", "note": "Füße “ok” 🎁", "amount": "12.50"}


class Post:
    """A receiver that treats its one event with one mishap, and a client of it."""

    def __init__(self, path, mishap: Mishap) -> None:
        plan = Plan(frozenset({"evt_1"}), {"evt_1": mishap}, {})
        self.path = path
        self.receiver = Receiver(Ledger(path, plan, {"evt_1": CHARGE}))
        self.thread = Thread(target=self.receiver.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def __call__(self, event: Event = CHARGE, key: str = "run-1", timeout: float = 5) -> tuple[int, str | None]:
        with closing(HTTPConnection("127.0.0.1", self.receiver.server_address[1], timeout=timeout)) as connection:
            connection.request("POST", "/webhooks", json.dumps(event).encode(), {"Idempotency-Key": key})
            reply = connection.getresponse()
            reply.read()
            return reply.status, reply.headers["Retry-After"]

    def ledger(self) -> list[tuple[str, bool, bool]]:
        return [(line.answer, line.effect, line.duplicate) for line in read_ledger(self.path)]

    def close(self) -> None:
        self.receiver.shutdown()
        self.receiver.server_close()
        self.receiver.ledger.close()
        self.thread.join()


@pytest.fixture
def post(tmp_path, request) -> Iterator[Post]:
    made = Post(tmp_path / "ledger.jsonl", request.param)
    yield made
    made.close()


@pytest.mark.parametrize("post", [Mishap.NONE], indirect=True)
def test_a_repetition_takes_no_second_effect(post):
    assert post() == post() == (200, None)
    assert post.ledger() == [("200", True, False), ("200", False, True)]


@pytest.mark.parametrize("post", [Mishap.ERROR_TWICE], indirect=True)
def test_errors_end_after_as_many_as_planned(post):
    assert [post()[0] for _ in range(3)] == [500, 500, 200]
    assert post.ledger() == [("500", False, False), ("500", False, False), ("200", True, False)]


@pytest.mark.parametrize("post", [Mishap.ERROR_ONCE], indirect=True)
def test_another_runs_deliveries_are_counted_apart(post):
    assert [post(key="run-1")[0], post(key="run-2")[0], post(key="run-1")[0]] == [500, 500, 200]


@pytest.mark.parametrize("post", [Mishap.BUSY], indirect=True)
def test_a_busy_receiver_says_when_to_come_back(post):
    assert post() == (429, "1")
    assert post() == (200, None)


@pytest.mark.parametrize("post", [Mishap.REFUSED], indirect=True)
def test_what_is_refused_stays_refused(post):
    assert [post()[0] for _ in range(3)] == [400, 400, 400]


@pytest.mark.parametrize(
    ("post", "took_effect"), [(Mishap.RESET, False), (Mishap.RESET_MID_REPLY, True)], indirect=["post"]
)
def test_a_connection_is_reset_before_or_after_the_effect(post, took_effect):
    with pytest.raises(ConnectionResetError):
        post()

    assert post() == (200, None)
    assert post.ledger() == [("reset", took_effect, False), ("200", not took_effect, took_effect)]


@pytest.mark.parametrize(
    ("post", "took_effect"), [(Mishap.STALL, False), (Mishap.STALL_AFTER_EFFECT, True)], indirect=["post"]
)
def test_a_stalled_request_times_out(post, took_effect):
    with pytest.raises(TimeoutError):
        post(timeout=0.1)

    assert post.ledger() == [("stalled", took_effect, False)]


@pytest.mark.parametrize("post", [Mishap.NONE], indirect=True)
def test_an_altered_event_is_written_down_as_such(post):
    post()
    post({**CHARGE, "note": "F??e"})

    assert [line.intact for line in read_ledger(post.path)] == [True, False]
