"""
Commits whose answer is lost: whoever waits for it cannot know whether they happened.

The connection dies after the server has committed, or before it has heard of it. Either way what was to be written is
there once, and whoever asked is told what is true.
"""

import random
import threading
import time
from collections import Counter

import psycopg
import pytest
from crash_processes import eventually
from crash_program import Program, call

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

KINDS = {
    "start": b"INSERT INTO action_retrier.runs",
    "claim": b"SET state = 'running', attempt = ",
    "cancel": b"SET state = 'canceled'",
    "report": b"SET state = moves.state",
}
"""What tells the transactions apart; one may be of several kinds."""
STARTERS = 4
OFTEN = 0.7
"""How often a commit gets lost."""


@pytest.fixture
def program(scene, proxy):
    """A program that reaches the database through the proxy."""
    program = Program(proxy.url, scene.folder)
    with program.app:
        yield program
        proxy.loses = lambda _: False
    program.close()


class Losses:
    """Decides which commits are lost, and counts them by what they were to commit."""

    def __init__(self, rng, most):
        self.count = Counter()
        self._rng = rng
        self._most = most
        self._lock = threading.Lock()

    def __call__(self, transaction):
        kinds = [kind for kind, text in KINDS.items() if text in transaction]
        with self._lock:
            kind = min(kinds, key=lambda kind: self.count[kind], default=None)
            return kind is not None and self.count[kind] < self._most and self._rng.random() <= OFTEN

    def happened(self, transaction):
        """Count one, of what was lost least."""
        kinds = [kind for kind, text in KINDS.items() if text in transaction]
        self.count[min(kinds, key=lambda kind: self.count[kind])] += 1

    @property
    def are_enough(self):
        return all(self.count[kind] >= self._most for kind in KINDS)


def use(program, losses, give_up_at, told):
    """Start runs and cancel some of them, one commit after the other, until enough have been lost."""
    number = 0
    while not losses.are_enough:
        assert time.monotonic() < give_up_at, f"not within its time: {losses.count}"
        number += 1
        callback = ("record", "record_shared", None)[number % 3]
        if number % 2:
            script = ("raise", "return") if number % 5 == 0 else ("return",)
            told.started += program.start([call(*script, on_complete=callback)])
        else:
            run_id = program.retrier.run_after(
                program.app, 3_600_000, "work", {"script": ["return"]}, on_complete=callback, context=["return"]
            )
            told.canceled[run_id] = program.retrier.cancel(program.app, run_id)


class Told:
    """What the program was told."""

    def __init__(self):
        self.started = []
        self.canceled = {}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "count"), [("answer", 1000), ("request", 400)])
def test_commits_that_get_lost_duplicate_nothing_and_lose_nothing(scene, proxy, program, what, count, capsys):
    """Of starts, claims, reports and cancels; each is done once, and every answer is true."""
    seed = random.randrange(2**32)
    losses = Losses(random.Random(seed), count // len(KINDS))
    told = [Told() for _ in range(STARTERS)]
    begun_at = time.monotonic()
    proxy.loses_request = what == "request"
    proxy.loses, proxy.on_loss = losses, losses.happened
    with program.app.worker():
        arguments = [(program, losses, begun_at + 200, one) for one in told]
        threads = [threading.Thread(target=use, args=given) for given in arguments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        proxy.loses = lambda _: False
        took_s = time.monotonic() - begun_at
        scene.started = [run_id for one in told for run_id in [*one.started, *one.canceled]]
        scene.wait_until_complete()
    stories = scene.verdict()

    with capsys.disabled():
        counts = ", ".join(f"{losses.count[kind]} of a {kind}" for kind in KINDS)
        print(f"\nlost {what}s of COMMIT, seed {seed}: {counts}; {len(stories)} runs in {took_s:.0f} s")
    assert proxy.lost == losses.count.total() >= count
    assert len(stories) == len(scene.started) == len(set(scene.started)), "each start is there once"
    canceled = {run_id: answer for one in told for run_id, answer in one.canceled.items()}
    assert {stories[run_id].row["state"] for run_id in canceled} == {"canceled"}
    assert set(canceled.values()) == {True}, "a cancel says True although its first try had committed"
    executed = [story for run_id, story in stories.items() if run_id not in canceled]
    assert {story.row["state"] for story in executed} == {"succeeded"}
    failures = [story.row["failures"] for story in executed]
    assert [story.executions for story in executed] == [1 + count for count in failures], "nothing is done twice"


def test_a_users_own_transaction_fails_before_the_user_and_its_run_is_there_once(scene, proxy, program):
    """Nobody but the user can repeat it; with an idempotency key that starts nothing twice."""
    key = {"idempotency_key": "one"}
    with psycopg.connect(proxy.url) as connection:
        run_ids = program.retrier.run_many(connection, [call("return", **key)])
        proxy.loses = lambda _: True
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    proxy.loses = lambda _: False
    eventually(lambda: scene.ids() == run_ids)

    with psycopg.connect(proxy.url) as connection:
        again = program.retrier.run_many(connection, [call("return", **key)])

    assert again == run_ids
    scene.started += run_ids
    assert [story.executions for story in scene.finish().values()] == [1]


def test_a_users_own_transaction_whose_commit_never_arrived_leaves_nothing(scene, proxy, program):
    with psycopg.connect(proxy.url) as connection:
        program.retrier.run_many(connection, [call("return")])
        proxy.loses = lambda _: True
        proxy.loses_request = True
        with pytest.raises(psycopg.OperationalError):
            connection.commit()

    assert scene.ids() == []


def test_a_mutation_whose_commit_is_answered_by_nobody_counts_once(scene, proxy, program):
    """The caller hears that it is done, and it is."""
    program.app.mutation(name="order")(order)
    proxy.loses = lambda _: proxy.lost < 1

    program.app.run_mutation_sync("order", {"run_id": "mine"})

    assert (proxy.lost, scene.count("SELECT count(*) FROM orders")) == (1, 1)


def order(ctx, run_id: str) -> None:
    ctx.db.execute("INSERT INTO orders (run_id) VALUES (%s)", (run_id,))
