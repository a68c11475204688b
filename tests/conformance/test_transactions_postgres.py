"""Transactions on PostgreSQL: rows that somebody else holds, sessions that die, servers that do not answer."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import psycopg
import pytest

from action_retrier import _completion, _mutations
from action_retrier._clock import SystemClock
from action_retrier._lifecycle import Succeeded
from action_retrier._ops.claims import ANY_LOSSES, claim_runs, next_due
from action_retrier._ops.control import cancel_run, clean_up_run, load_status, prune_runs, retry_run
from action_retrier._ops.reports import apply_moves
from action_retrier._ops.starts import start_runs
from action_retrier._ops.workers import list_workers, owned_by, recover_worker
from action_retrier._statements import Op, Statement
from action_retrier.drivers import Database, open_database
from action_retrier.drivers.postgres import commits, resets, session
from action_retrier.drivers.postgres import database as database_module
from action_retrier.drivers.postgres.doubt import CommitInDoubt
from action_retrier.errors import DatabaseUnavailable, RunNotFound
from action_retrier.results import Canceled, Completed, InProgress, Success

from ..stores import LIMIT_S, NAMESPACE, Store, cancel_at_any_moment, in_thread, until
from ..support.postgres_server import Server, running_server
from .bench import Bench


class Bug(Exception):
    """What makes a transaction roll back."""


@contextlib.contextmanager
def held(other: Database, *ops: Callable[[], Op[Any]], commit: bool = False) -> Iterator[None]:
    """Have a user's transaction hold what operations write, until the block ends."""
    with contextlib.suppress(Bug), other.transaction_sync() as transaction:
        for op in ops:
            transaction.run_sync(op())
        yield
        if not commit:
            raise Bug


@pytest.fixture
def other(store: Store) -> Database:
    """The same database, opened once more, as another process would."""
    return store.system.open(store.clock)


# Rows that a user's open transaction holds.


@pytest.mark.parametrize("commit", [False, True])
def test_a_run_that_somebody_is_canceling_is_busy_and_its_neighbours_are_written(
    store: Store, other: Database, *, commit: bool
) -> None:
    """I3, I5: nobody waits for a user's transaction, and what it decides is obeyed."""
    run_ids = [store.start() for _ in range(3)]
    worker = store.worker()
    settled = [store.settled(row, worker, Succeeded("1")) for row in store.claim(worker).runs]

    with held(other, lambda: cancel_run(NAMESPACE, run_ids[1]), commit=commit):
        assert store.write(apply_moves, settled) == ({(run_ids[0], 1), (run_ids[2], 1)}, {(run_ids[1], 1)})
        assert store.status(run_ids[0]) == Completed(Success(1))
        assert store.status(run_ids[1]) == InProgress()

    assert store.write(apply_moves, settled) == (set() if commit else {(run_ids[1], 1)}, set())
    assert store.status(run_ids[1]) == Completed(Canceled() if commit else Success(1))


def test_a_dead_workers_row_stays_until_all_it_had_is_settled(store: Store, other: Database) -> None:
    """I1: else nobody would ask after the run that was left."""
    kept, settled = store.start(), store.start()
    dead = store.worker()
    store.claim(dead)

    with held(other, lambda: cancel_run(NAMESPACE, kept)):
        assert store.write(recover_worker, dead.id, store.rng)[:2] == (1, False)
        assert store.row(settled)["state"] == "pending"
        assert [row["id"] for row in store.read(list_workers, NAMESPACE)] == [dead.id]

    assert store.write(recover_worker, dead.id, store.rng)[:2] == (1, True)
    assert store.row(kept)["state"] == "pending"
    assert store.read(list_workers, NAMESPACE) == []


def test_a_dead_workers_row_stays_while_somebody_holds_its_callback(store: Store, other: Database) -> None:
    """I4: the same for a callback that it was calling."""
    run_id = store.start(on_complete="done")
    store.write(cancel_run, NAMESPACE, run_id)
    dead = store.worker(mutations=("done",))
    store.claim_callbacks(dead)

    def hold() -> Op[None]:
        yield Statement("postpone_callback", {**FENCE, "id": run_id, "worker": dead.id, "tries": 1})

    with held(other, hold):
        assert store.write(recover_worker, dead.id, store.rng)[:2] == (0, False)
        assert store.row(run_id)["callback_worker"] == dead.id

    assert store.write(recover_worker, dead.id, store.rng)[:2] == (0, True)
    assert (store.row(run_id)["callback_worker"], store.row(run_id)["callback_losses"]) == (None, 1)


FENCE: dict[str, Any] = {"delay": 1, "error": "", "traceback": None}


async def test_a_report_of_a_busy_run_is_told_back_to_be_tried_again(bench: Bench) -> None:
    """I3: with its callback, which is not called before the row is ours."""
    bench.callback(lambda ctx: bench.note(ctx, "called"))
    row = bench.claimed()
    other = bench.store.system.open(bench.store.clock)
    report = bench.report(row)

    with held(other, lambda: cancel_run(NAMESPACE, row["id"])):
        assert await bench.completion.complete([report]) == [report]
        assert await bench.completion.write([report]) == [report]
        assert (bench.notes, bench.state(row)) == ([], ("running", "none", 0))

    assert await bench.completion.complete([report]) == []
    assert (bench.notes, bench.state(row)) == (["called"], ("succeeded", "done", 1))


async def test_a_failed_callback_of_a_busy_run_is_told_back_to_be_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: somebody has taken the row between the callback's transaction and the one that says that it failed."""
    monkeypatch.setattr(_completion, "_PAUSES_S", (0, 0))
    bench.callback(lambda ctx: bench.note(ctx, "called"))
    row = bench.claimed()
    other = bench.store.system.open(bench.store.clock)
    report = bench.report(row)

    async def fail(*_: Any) -> None:
        raise ValueError("the callback has failed")

    with monkeypatch.context() as patch, held(other, lambda: cancel_run(NAMESPACE, row["id"])):
        patch.setattr(bench.mutations, "in_transaction", fail)
        assert await bench.completion.complete([report]) == [report]
        assert bench.state(row) == ("running", "none", 0)

    assert await bench.completion.complete([report]) == []
    assert (bench.notes, bench.state(row)) == (["called"], ("succeeded", "done", 1))


def test_a_key_that_is_not_committed_delays_nobody_else(store: Store, other: Database) -> None:
    """Whoever wants the same key waits for it apart; everybody else goes on."""
    first, second = store.starting(key="k"), store.starting(key="k")
    with held(other, lambda: start_runs(NAMESPACE, [first]), commit=True):
        waits = in_thread(lambda: store.database.write_sync(lambda: start_runs(NAMESPACE, [second]), apart=True))
        until(store.system.waits_for_a_lock)
        assert store.status(store.start()) == InProgress()
        assert not waits.done()

    assert waits.result(LIMIT_S) == [first.id]


def test_a_key_whose_run_is_cleaned_up_meanwhile_is_free(store: Store, other: Database) -> None:
    """I1: what is returned has been started, or is somebody's run; never an id that nobody has."""
    first = store.start(key="k")
    store.write(cancel_run, NAMESPACE, first)
    second = store.starting(key="k")

    def start() -> Op[list[str]]:
        op = start_runs(NAMESPACE, [second])
        statement = next(op)
        while True:
            if statement.name == "select_keys":
                with contextlib.suppress(RunNotFound):
                    other.write_sync(lambda: clean_up_run(NAMESPACE, first, discard_callback=False))
            rows = yield statement
            try:
                statement = op.send(rows)
            except StopIteration as stop:
                return list(stop.value)

    assert store.database.write_sync(start) == [second.id]
    assert store.status(second.id) == InProgress()


def test_retention_leaves_what_a_users_transaction_holds(store: Store, other: Database) -> None:
    """A worker that waited for it would neither claim nor report meanwhile."""
    held_one, free_one = store.start(), store.start()
    for run_id in (held_one, free_one):
        store.write(cancel_run, NAMESPACE, run_id)
    store.clock.advance(1000)

    with held(other, lambda: retry_run(NAMESPACE, held_one)):
        assert store.write(prune_runs, NAMESPACE, 1000, 100) == 1
    assert store.write(prune_runs, NAMESPACE, 1000, 100) == 1
    assert store.system.table("runs") == []


def test_calls_beside_the_queue_are_made_whatever_user_code_has_left_on_the_connection(store: Store) -> None:
    run_id = store.start()
    with store.transaction() as transaction:
        transaction.connection.cursor_factory = transaction.connection.row_factory = None

    assert store.database.write_sync(lambda: cancel_run(NAMESPACE, run_id), apart=True)


def test_a_connection_goes_with_its_event_loop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without one runs an async mutation on a loop of its own, each time: it must not use up the server."""
    monkeypatch.setattr(database_module, "CALL_S", 600.0)  # nor be kept open by the deadlines of calls that have ended

    async def pid(ctx: Any) -> int:
        return int((await (await ctx.db.execute("SELECT pg_backend_pid()")).fetchone())[0])

    bench.callback(pid, "pid")
    pids = {bench.mutations.run_sync("pid", None) for _ in range(5)}
    asked = "SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)"
    with bench.store.system.connect(autocommit=True) as look:
        until(lambda: len(look.execute(asked, [[*pids]]).fetchall()) <= 1)


def test_a_deferred_constraint_that_fails_is_raised_as_it_is(store: Store) -> None:
    """By the COMMIT, after which the connection is as good as before."""
    notes = f"{store.system.schema}_own.notes"  # type: ignore[attr-defined]
    with pytest.raises(psycopg.errors.UniqueViolation), store.transaction() as transaction:
        transaction.connection.execute(
            f"ALTER TABLE {notes} ADD CONSTRAINT late UNIQUE (number) DEFERRABLE INITIALLY DEFERRED"
        )
        transaction.connection.execute(f"INSERT INTO {notes} (text, number) VALUES ('a', 7), ('b', 7)")  # noqa: S608

    assert store.system.notes() == []
    with store.transaction() as transaction:
        transaction.note("after")
    assert store.system.notes() == ["after"]


def test_a_commit_that_the_server_makes_a_rollback_is_an_error(store: Store) -> None:
    """Whoever goes on after an error of the database has a transaction that can only be rolled back."""
    with (
        pytest.raises(DatabaseUnavailable, match="the server rolled it back.*let errors"),
        store.transaction() as transaction,
    ):
        transaction.note("lost")
        with contextlib.suppress(psycopg.errors.DivisionByZero):
            transaction.connection.execute("SELECT 1 / 0")

    assert store.system.notes() == []


LATE = "CREATE TEMP TABLE late (number int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO late VALUES (7), (7)"


@pytest.mark.parametrize(
    ("statement", "error", "is_swallowed"),
    [
        ("SELECT 1", None, False),
        ("SELECT 1 / 0", "zero", False),
        ("SELECT 1 / 0", "aborted", True),
        (LATE, "late", False),
    ],
)
def test_a_lock_of_the_session_that_user_code_leaves_does_not_outlive_its_transaction(
    store: Store, statement: str, error: str | None, *, is_swallowed: bool
) -> None:
    """Whoever waits for it would do so for as long as the connection idles."""
    expected = pytest.raises(psycopg.Error, match=error) if error else contextlib.nullcontext()
    with expected, store.transaction() as transaction, transaction.user_code():
        transaction.connection.execute("SELECT pg_advisory_lock(4711)")
        with contextlib.suppress(psycopg.Error) if is_swallowed else contextlib.nullcontext():
            transaction.connection.execute(statement)

    with store.system.connect() as connection:
        held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"
        assert connection.execute(held).fetchall() == []


async def test_a_canceled_call_through_ctx_leaves_its_transaction_usable(bench: Bench) -> None:
    """And what comes back from it is all or nothing, wherever the cancellation meets it."""
    async with bench.store.database.transaction("read committed") as transaction, transaction.user_code():
        told, canceled = await cancel_at_any_moment(
            lambda: transaction.run(start_runs(NAMESPACE, [bench.store.starting()])),
            lambda _: transaction.connection("async").execute("SELECT 1"),
        )

    assert told <= len(bench.store.system.table("runs")) <= told + canceled
    assert canceled > 0


def test_a_commit_that_was_canceled_is_asked_after(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have happened: what is done in the same exchange may have been what was canceled."""
    slow = resets.Resets(leftovers=(), unlock=("SET statement_timeout = 1", "SELECT pg_sleep(1)"))
    monkeypatch.setattr(store.database, "_resets", slow)
    with store.transaction() as transaction, transaction.user_code():
        transaction.note("once")

    assert store.system.notes() == ["once"]


def test_a_server_that_knows_less_is_served_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some speak PostgreSQL's language, and have no advisory locks, say, or no such settings."""
    nothing = "SELECT pg_catalog.no_such_function()"
    wanted = resets.Resets(("RESET NOTHING OF IT", "RESET ROLE"), ("CLOSE ALL", nothing), (nothing,))
    monkeypatch.setattr(resets, "EVERYTHING", wanted)
    monkeypatch.setattr(session, "_PLANNING", "SET no_such_setting = 1")
    store.database.close()

    with store.transaction() as transaction:
        with transaction.user_code():
            transaction.note("served")
        with transaction.savepoint():
            pass

    assert store.system.notes() == ["served"]
    assert store.status(store.start()) == InProgress()


def test_a_transaction_that_cannot_begin_says_why(store: Store) -> None:
    """Its connection is not used any more, and the next one finds another."""
    nonsense: Any = "as nobody likes it"
    for _ in range(2):
        with (
            pytest.raises(psycopg.errors.SyntaxError),
            store.entered(
                lambda: store.database.transaction_sync(nonsense), lambda: store.database.transaction(nonsense)
            ),
        ):
            pass
        with store.transaction() as transaction:
            assert transaction.is_open


def test_user_code_may_be_left_without_its_transaction(store: Store) -> None:
    """One that was abandoned commits nothing, and leaves without an error."""
    with store.transaction() as transaction, transaction.user_code():
        transaction.note("lost")
        transaction.abandon()

    assert store.system.notes() == []


# What became of a COMMIT.


@pytest.fixture
def theirs(store: Store) -> Iterator[tuple[Any, Any]]:
    """A transaction that is open on a connection, and what it is found by."""
    with store.system.connect(autocommit=True) as connection:
        yield connection, commits.begin(connection, "read committed", marked=True)


def in_doubt(store: Store, mark: Any) -> CommitInDoubt:
    return CommitInDoubt(store.database._target, mark)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("end", "fate"), [("COMMIT", "committed"), ("ROLLBACK", "rolled back")])
def test_the_server_is_asked_until_it_knows(
    store: Store, theirs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, end: str, fate: str
) -> None:
    """The session that got the COMMIT may still be at it."""
    connection, mark = theirs
    pauses = []

    def pause(for_s: float) -> None:
        pauses.append(for_s)
        if len(pauses) == 3:
            connection.execute(end)

    monkeypatch.setattr(commits, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    doubt = in_doubt(store, mark)

    commits.resolve(doubt)

    assert (doubt.fate, len(pauses)) == (fate, 3)
    assert pauses[0] < pauses[1] < pauses[2]


def test_the_server_is_asked_for_as_long_as_anybody_would_wait(
    store: Store, theirs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "PATIENCE_S", 0.05)
    doubt = in_doubt(store, theirs[1])

    commits.resolve(doubt)

    assert doubt.fate == "unknown"
    assert "whether that happened is not known" in str(doubt.unresolved())


def test_another_life_of_the_server_says_nothing(store: Store, theirs: tuple[Any, Any]) -> None:
    """Ids may have been given out again since."""
    connection, mark = theirs
    connection.execute("COMMIT")

    assert commits.fate_of(connection, in_doubt(store, replace(mark, server_started="before"))) == "unknown"
    assert commits.fate_of(connection, in_doubt(store, None)) == "unknown"


def test_a_transaction_whose_commit_may_not_have_happened_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is user code's: nobody does it again."""

    async def lose_async(*args: Any, **kwargs: Any) -> None:
        lose(*args, **kwargs)

    def lose(_: Any, target: Any, mark: Any, **__: Any) -> None:
        raise CommitInDoubt(target, mark)

    monkeypatch.setattr(database_module, "commit", lose)
    monkeypatch.setattr(database_module, "commit_async", lose_async)
    monkeypatch.setattr(commits, "PATIENCE_S", 0.0)

    with pytest.raises(DatabaseUnavailable, match="is not known"), store.transaction() as transaction:
        transaction.note("perhaps")


def test_a_server_that_cannot_be_asked_is_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some speak PostgreSQL's language, and know no such thing: transactions go without a mark."""
    monkeypatch.setattr(commits, "_MARK", "SELECT no_such_function()")
    store.database.close()

    with store.transaction() as transaction:
        transaction.note("unmarked")
    with store.entered(store.database.transaction_sync, store.database.transaction):
        pass

    assert store.system.notes() == ["unmarked"]
    assert store.status(store.start()) == InProgress()


# Sessions that die.


def test_a_call_beside_the_queue_is_made_again_if_its_session_is_lost(store: Store) -> None:
    """I6: nothing of the first try is left; what would not pass by itself is raised at once."""
    start, tries = store.starting(), []

    def begin(lose: Callable[[], object]) -> Op[list[str]]:
        tries.append(1)
        started = yield from start_runs(NAMESPACE, [start])
        if len(tries) == 1:
            lose()
        yield Statement("select_fate", NOBODYS_MARK)
        return started

    def fail() -> None:
        raise psycopg.errors.UndefinedTable("no such table")

    with pytest.raises(psycopg.errors.UndefinedTable):
        store.database.write_sync(lambda: begin(fail), apart=True)
    assert len(tries) == 1

    tries.clear()
    assert store.database.write_sync(lambda: begin(lambda: end_sessions(store)), apart=True) == [start.id]
    assert len(tries) == 2
    assert [row["id"] for row in store.system.table("runs")] == [start.id]


NOBODYS_MARK = {"xid": "3", "server_started": "", "checkpoint": ""}


def test_a_savepoint_whose_session_is_lost_says_so(store: Store) -> None:
    """There is nothing left that could be undone, and the error is that of the loss."""
    with (
        pytest.raises(DatabaseUnavailable, match="terminating connection"),
        store.transaction() as transaction,
        transaction.savepoint(),
    ):
        assert end_sessions(store)
        transaction.run(start_runs, NAMESPACE, [store.starting()])

    assert store.system.table("runs") == []


def end_sessions(store: Store) -> int:
    """Have the server end every session of ours, as an administrator would, or a failover."""
    with psycopg.connect(store.system.url.partition("?")[0], autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
            [store.system.schema],  # type: ignore[attr-defined]
        )
        return len(ended.fetchall())


def test_whatever_comes_after_a_lost_session_opens_another_one(store: Store) -> None:
    """Reads, writes, transactions for user code and calls beside the queue."""
    run_id = store.start()
    with store.transaction() as transaction:
        transaction.note("before")
    assert store.status(run_id) == InProgress()
    assert end_sessions(store) >= 3

    assert store.status(run_id) == InProgress()
    assert end_sessions(store)
    with store.transaction() as transaction:
        transaction.note("after")
    assert end_sessions(store)
    assert store.database.write_sync(lambda: cancel_run(NAMESPACE, run_id), apart=True)
    assert store.system.notes() == ["before", "after"]
    assert store.status(store.start()) == InProgress()


def test_an_operation_whose_session_is_lost_in_the_midst_of_it_is_done_once(store: Store) -> None:
    """I6: what it had written is gone with the session, and it is done again."""
    starts = [store.starting(), store.starting()]
    tries = []

    def start_both() -> Op[None]:
        yield from start_runs(NAMESPACE, starts[:1])
        tries.append(1)
        if len(tries) == 1:
            assert end_sessions(store)
        yield from start_runs(NAMESPACE, starts[1:])

    store.write(start_both)

    assert len(tries) == 2
    assert {row["id"] for row in store.system.table("runs")} == {start.id for start in starts}


class Exchanges:
    """Counts what a session sends, and loses its connection when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[str] = []
        self.loses: str | None = None
        begin, execute, send, commit = session.begin, session.execute, session.send_prepared, session.commit

        def counted_begin(*args: Any, **options: Any) -> Any:
            self.sent.append("BEGIN")
            return begin(*args, **options)

        def counted_execute(connection: Any, statement: Statement, *args: Any) -> Any:
            self.sent.append(statement.name)
            rows = execute(connection, statement, *args)
            if statement.name == self.loses:
                self.loses = None
                connection.close()
                raise psycopg.OperationalError("the answer is lost")
            return rows

        def counted_send(connection: Any, statement: Statement, *args: Any) -> None:
            self.sent.append(statement.name)
            send(connection, statement, *args)
            if statement.name == self.loses:
                self.loses = None
                while connection.pgconn.get_result() is not None:
                    pass
                connection.close()
                raise psycopg.OperationalError("the answer is lost")

        def counted_commit(*args: Any) -> None:
            self.sent.append("COMMIT")
            commit(*args)

        monkeypatch.setattr(session, "begin", counted_begin)
        monkeypatch.setattr(session, "execute", counted_execute)
        monkeypatch.setattr(session, "send_prepared", counted_send)
        monkeypatch.setattr(session, "commit", counted_commit)


@pytest.fixture
def exchanges(store: Store, monkeypatch: pytest.MonkeyPatch) -> Exchanges:
    store.status(store.start())  # both sessions are open
    return Exchanges(monkeypatch)


def test_what_stands_alone_is_one_exchange(store: Store, exchanges: Exchanges) -> None:
    """A claim, the question before it, a status: of three round trips two are spared."""
    worker = store.worker("charge")
    exchanges.sent.clear()

    due = store.read(next_due, worker, ANY_LOSSES)
    (row,) = store.write(claim_runs, worker, 10, 0, due.lanes).runs
    assert store.status(row["id"]) == InProgress()

    assert exchanges.sent == ["next_due", "claim_runs", "select_status"]


def test_what_does_not_stand_alone_has_a_transaction(store: Store, exchanges: Exchanges) -> None:
    """What more may follow is looked up when its COMMIT gets no answer; a claim with suspects is two statements."""
    store.start()
    assert exchanges.sent == ["BEGIN", "insert_runs", "COMMIT"]
    exchanges.sent.clear()

    worker = store.worker("charge")
    exchanges.sent.clear()
    store.write(claim_runs, worker, 10, ANY_LOSSES)
    assert exchanges.sent[0] == "BEGIN"
    assert exchanges.sent[-1] == "COMMIT"


def test_a_claim_that_got_no_answer_is_done_again(store: Store, exchanges: Exchanges) -> None:
    """I1: what the first has taken is the worker's; it does not know of that, and gives it back (see test_recovering)."""
    worker = store.worker("charge")
    first, second = sorted(row["id"] for row in store.system.table("runs")), store.start()
    exchanges.loses = "claim_runs"

    claimed = store.write(claim_runs, worker, 1, 0)

    assert [row["id"] for row in claimed.runs] == [second]
    assert {(run_id, 1) for run_id in [*first, second]} == store.read(owned_by, worker.id).attempts


def test_a_start_that_stands_alone_is_one_exchange(store: Store, exchanges: Exchanges) -> None:
    """What a user waits for most often: of three round trips two are spared."""
    start = store.starting()

    assert store.write(start_runs, NAMESPACE, [start], stands_alone=True) == [start.id]

    assert exchanges.sent == ["insert_runs"]


def test_a_start_that_got_no_answer_is_done_again_with_care(store: Store, exchanges: Exchanges) -> None:
    """I1: it was there already, and its COMMIT counts: it has written something, and waits for the same standby."""
    start = store.starting()
    exchanges.loses = "insert_runs"

    assert store.write(start_runs, NAMESPACE, [start], stands_alone=True) == [start.id]

    assert [row["id"] for row in store.system.table("runs")].count(start.id) == 1
    assert exchanges.sent == ["insert_runs", "BEGIN", "insert_runs", "touch_meta", "COMMIT"]


def test_an_outage_is_told_once_and_so_is_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often a worker tries meanwhile: twenty of them would fill the log when it matters."""
    run_id = store.start()
    connect, tries = session.connect, []

    def refused(target: Any) -> Any:
        tries.append(1)
        if len(tries) < 4:
            raise DatabaseUnavailable(problem="refused", remedy="") from psycopg.OperationalError("refused")
        return connect(target)

    end_sessions(store)
    monkeypatch.setattr(session, "connect", refused)
    with caplog.at_level(logging.INFO, logger="action_retrier"):
        assert store.status(run_id) == InProgress()

    assert len(tries) == 4
    told = [record for record in caplog.records if record.module == "session"]
    assert [record.levelname for record in told] == ["WARNING", "INFO"]
    assert "answers again" in told[-1].getMessage()


def test_a_users_transaction_whose_session_is_lost_says_so(store: Store) -> None:
    """I6: it is not done again by itself: what user code has done beside it is not ours to repeat."""
    start = store.starting()
    with pytest.raises(DatabaseUnavailable), store.transaction() as transaction:
        transaction.run(start_runs, NAMESPACE, [start])
        assert end_sessions(store)
        transaction.run(load_status, NAMESPACE, start.id)

    with pytest.raises(RunNotFound):
        store.status(start.id)


@pytest.mark.parametrize("fate", ["committed", "rolled back", "unknown"])
def test_a_write_whose_commit_got_no_answer_is_done_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    """I2, I6: looked up where the server knows, else done again under its id."""
    commit, lost = commits.commit, []

    def lossy(connection: Any, target: Any, mark: Any) -> None:
        if lost:
            commit(connection, target, mark)
            return
        lost.append(mark)
        if fate != "rolled back":
            commit(connection, target, mark)
        connection.close()
        raise CommitInDoubt(target, None if fate == "unknown" else mark)

    monkeypatch.setattr(session, "commit", lossy)
    start = store.starting()

    assert store.write(start_runs, NAMESPACE, [start]) == [start.id]

    assert len(lost) == 1
    assert [row["id"] for row in store.system.table("runs")] == [start.id]


# Transactions that others disturb.


@pytest.mark.parametrize("flavour", ["def", "async def"])
async def test_a_mutation_that_could_not_be_serialized_is_done_again(bench: Bench, flavour: str) -> None:
    """40001: what it read was changed by somebody who committed first."""
    system, seen = bench.store.system, []
    with system.connect() as first:
        system.write_note(first, "read by both")

    def count(ctx: Any) -> None:
        seen.append(len(system.read_notes(ctx.db)))  # type: ignore[attr-defined]
        bench.note(ctx, f"saw {seen[-1]}")
        if len(seen) == 1:
            with system.connect() as other:
                other.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
                system.read_notes(other)  # type: ignore[attr-defined]
                system.write_note(other, "in between")

    async def count_async(ctx: Any) -> None:
        count(ctx)

    bench.callback(count if flavour == "def" else count_async, "count")

    await bench.mutations.run("count", None)

    assert seen == [1, 2]
    assert bench.notes == ["read by both", "in between", "saw 2"]


@pytest.mark.parametrize("colour", ["sync", "async"])
async def test_a_mutation_that_can_never_be_serialized_raises_that_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, colour: str
) -> None:
    """Ten times in all; nothing of it is left."""
    monkeypatch.setattr(_mutations, "_SHORTEST_PAUSE_S", 0)
    tries = []

    def fail(ctx: Any) -> None:
        tries.append(1)
        bench.note(ctx, f"try {len(tries)}")
        ctx.db.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")

    bench.callback(fail, "fail")

    with pytest.raises(psycopg.errors.SerializationFailure):
        if colour == "sync":
            bench.mutations.run_sync("fail", None)
        else:
            await bench.mutations.run("fail", None)

    assert (len(tries), bench.notes) == (10, [])


async def test_a_mutation_that_was_the_victim_of_a_deadlock_is_done_again(bench: Bench) -> None:
    """40P01: two that lock the same rows in different orders."""
    system, tries, threads = bench.store.system, [], []
    with system.connect() as setup:
        for text in ("a", "b"):
            system.write_note(setup, text)
    lock = f"UPDATE {system.schema}_own.notes SET text = text WHERE text = %s"  # type: ignore[attr-defined] # noqa: S608
    other = system.connect()
    other.execute("SET deadlock_timeout = '1h'")
    other.execute(lock, ["b"])

    def cross(ctx: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            ctx.db.execute("SET LOCAL deadlock_timeout = '1ms'")
            ctx.db.execute(lock, ["a"])
            threads.append(in_thread(lambda: (other.execute(lock, ["a"]), other.commit())))
            until(system.waits_for_a_lock)
            ctx.db.execute(lock, ["b"])
        ctx.db.execute(lock, ["b"])

    bench.callback(cross, "cross", isolation="read committed")

    await bench.mutations.run("cross", None)

    assert len(tries) == 2
    threads[0].result(LIMIT_S)


# A server that does not answer.


def stop(server: Server, stack: contextlib.ExitStack) -> None:
    """Stop all processes of a server, as a host does that hangs; they go on when the stack is left."""
    for process in [*psutil.Process(server.pid).children(), psutil.Process(server.pid)]:
        stack.callback(process.send_signal, signal.SIGCONT)
        process.send_signal(signal.SIGSTOP)


def test_a_server_that_stops_while_an_operation_fails_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollback waits no longer than any other call, or the writer's thread would stand still with the server."""
    monkeypatch.setattr(session, "CALL_S", 0.3)
    with running_server() as server, contextlib.ExitStack() as stopped:
        database = stopped.enter_context(
            contextlib.closing(open_database(server.url, clock=SystemClock(), auto_migrate=True))
        )

        def fail() -> Op[None]:
            yield Statement("select_workers", {"namespace": NAMESPACE})
            stop(server, stopped)
            raise Bug

        with pytest.raises(Bug):
            in_thread(database.write_sync, fail).result(LIMIT_S)


@pytest.mark.parametrize("last", ["is_pooled", "read_meta"])
def test_a_server_that_stops_while_it_is_opened_is_given_up(monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    monkeypatch.setattr(database_module, "CALL_S", 0.3)
    before = getattr(database_module, last)
    with running_server() as server, contextlib.ExitStack() as stopped:

        def stop_and_ask(*args: Any) -> Any:
            stop(server, stopped)
            return before(*args)

        monkeypatch.setattr(database_module, last, stop_and_ask)
        database = open_database(server.url, clock=SystemClock(), auto_migrate=True)
        with pytest.raises(DatabaseUnavailable):
            in_thread(database.open).result(LIMIT_S)


def test_a_server_that_was_stopped_is_given_up_and_used_again_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither TCP nor libpq notices: the deadline does, and the connection is not used again."""
    monkeypatch.setattr(session, "CALL_S", 0.3)
    monkeypatch.setattr(session, "PATIENCE_S", 0.5)
    with running_server() as server:
        database = open_database(f"{server.url}?connect_timeout=2", clock=SystemClock(), auto_migrate=True)
        with contextlib.closing(database):
            assert database.write_sync(lambda: list_workers(NAMESPACE)) == []
            before = database._writer._connection  # type: ignore[attr-defined]
            began = time.monotonic()
            with contextlib.ExitStack() as stopped, pytest.raises(DatabaseUnavailable):
                stop(server, stopped)
                database.write_sync(lambda: list_workers(NAMESPACE))
            assert time.monotonic() - began < 10
            assert before.closed

            assert database.write_sync(lambda: list_workers(NAMESPACE)) == []
            assert database._writer._connection is not before  # type: ignore[attr-defined]
