"""Who sends what commits itself, and takes in the answer: whoever asks, unless something is in the way."""

import asyncio
import itertools
import linecache
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from action_retrier._ops.starts import start_runs
from action_retrier._statements import Op, Statement
from action_retrier.drivers.postgres import session
from action_retrier.errors import DatabaseUnavailable

from ..stores import LIMIT_S, NAMESPACE, Store, in_thread, until


def starting(store: Store) -> Any:
    """Make a start that commits itself."""
    start = store.starting()
    return lambda: start_runs(NAMESPACE, [start], stands_alone=True)


def ids(store: Store) -> set[str]:
    return {row["id"] for row in store.system.table("runs")}


def descriptors() -> int:
    """Count what this process has open."""
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.fixture
def senders(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Where statements have been sent from, since all was open and prepared."""
    store.database.write_sync(starting(store))
    senders = []
    for name in ("execute", "send_prepared"):
        call = getattr(session, name)

        def noted(*args: Any, call: Any = call) -> Any:
            senders.append(threading.current_thread())
            return call(*args)

        monkeypatch.setattr(session, name, noted)
    return senders


@pytest.fixture
def loop(store: Store) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs only while a test lets it."""
    store.database.write_sync(starting(store))
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def sent(store: Store, loop: asyncio.AbstractEventLoop) -> "asyncio.Task[list[str]]":
    """Have the loop send a start, and stand still before it could hear the answer."""
    task = loop.create_task(store.database.write(starting(store)))
    turn_once(loop)
    assert not task.done()
    return task


def turn_once(loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop do what it has to do by now, and not look what comes of that."""
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_whoever_asks_sends_it(store: Store, senders: list[threading.Thread]) -> None:
    """In either colour: to change threads there and back takes as long as the rest."""
    store.write(start_runs, NAMESPACE, [store.starting()], stands_alone=True)

    assert senders == [threading.current_thread()]


def test_nobody_waits_for_a_loop_that_is_blocked(store: Store, loop: asyncio.AbstractEventLoop) -> None:
    """User code on it may take as long as it likes; a thread takes in the answer, and the connection is free."""
    task = sent(store, loop)

    (other,) = in_thread(store.database.write_sync, starting(store)).result(LIMIT_S)

    (one,) = loop.run_until_complete(asyncio.wait_for(task, LIMIT_S))
    assert {one, other} < ids(store)


def test_nobody_waits_for_a_loop_that_is_closed(store: Store, loop: asyncio.AbstractEventLoop) -> None:
    """What it has sent is done all the same, and nothing of it is left open."""
    store.database.write_sync(starting(store))
    before = descriptors()
    task = sent(store, loop)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    count = len(ids(store))
    loop.close()

    store.database.write_sync(starting(store))

    until(lambda: len(ids(store)) == max(count, 3) + 1)
    until(lambda: descriptors() < before)  # the loop's own are gone


def test_what_is_canceled_has_been_sent_and_is_done(store: Store, loop: asyncio.AbstractEventLoop) -> None:
    task = sent(store, loop)
    before = ids(store)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))

    store.database.write_sync(starting(store))

    until(lambda: len(ids(store)) >= len(before) + 1)
    assert loop.run_until_complete(asyncio.wait_for(store.database.write(starting(store)), LIMIT_S))


def test_closing_waits_for_an_answer_that_is_on_its_way(store: Store, loop: asyncio.AbstractEventLoop) -> None:
    database = store.system.open(store.clock)
    database.write_sync(starting(store))
    task = loop.create_task(database.write(starting(store)))
    turn_once(loop)
    before = len(ids(store))

    in_thread(database.close).result(LIMIT_S)

    assert loop.run_until_complete(asyncio.wait_for(task, LIMIT_S))
    assert len(ids(store)) in {before, before + 1}


def test_a_statement_that_fails_there_belongs_to_who_sent_it(store: Store) -> None:
    """The next one finds the connection as it was."""

    def broken() -> Op[None]:
        yield Statement("insert_runs", {"namespace": NAMESPACE, "rows": "[{]"}, stands_alone=True)

    store.write(start_runs, NAMESPACE, [store.starting()], stands_alone=True)
    for _ in range(3):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            store.write(broken)
        assert store.write(start_runs, NAMESPACE, [store.starting()], stands_alone=True)


def test_what_raises_after_its_answer_belongs_to_who_sent_it(store: Store) -> None:
    def broken() -> Op[None]:
        yield Statement("select_workers", {"namespace": NAMESPACE}, stands_alone=True)
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            store.read(broken)
    assert store.read(lambda: _two(store)) == [[], []]


def _two(store: Store) -> Op[list[Any]]:
    """One after the other, each by itself."""
    del store
    one = yield Statement("select_workers", {"namespace": NAMESPACE}, stands_alone=True)
    other = yield Statement("select_workers", {"namespace": NAMESPACE}, stands_alone=True)
    return [one, other]


def test_no_descriptor_is_left_open(store: Store) -> None:
    """Each exchange on a loop has one of its own."""
    store.write(start_runs, NAMESPACE, [store.starting()], stands_alone=True)
    before = descriptors()
    for _ in range(50):
        store.write(start_runs, NAMESPACE, [store.starting()], stands_alone=True)

    assert descriptors() <= before + 1


def test_a_closed_database_takes_nothing_more(store: Store, loop: asyncio.AbstractEventLoop) -> None:
    database = store.system.open(store.clock)
    database.write_sync(starting(store))
    writer = database._writer
    database.close()

    with pytest.raises(DatabaseUnavailable):
        writer.run_sync(starting(store), None)
    with pytest.raises(DatabaseUnavailable):
        loop.run_until_complete(writer.run(starting(store), None))


class Signal(BaseException):
    """What a signal's handler raises."""


def test_a_signal_may_interrupt_a_call_at_any_moment(store: Store) -> None:
    """Whoever calls next finds nobody at it; what was begun is there once or not at all, and nothing of it half."""
    store.database.write_sync(starting(store))
    for moment in itertools.count(1):
        left = moment

        def trace(frame: Any, event: str, argument: object) -> Any:
            del argument
            nonlocal left
            if not frame.f_code.co_filename.endswith(("jobs.py", "session.py")):
                return None
            # Between the end of a block and its __exit__ no signal's handler is called.
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            if event == "line" and not line.lstrip().startswith("with "):
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    raise Signal
            return trace

        make = starting(store)
        sys.settrace(trace)
        try:
            store.database.write_sync(make)
            break  # there are no more moments
        except Signal:
            pass
        finally:
            sys.settrace(None)
        assert in_thread(store.database.write_sync, starting(store)).result(LIMIT_S), moment

    assert moment > 30
    assert len(ids(store)) > moment


def test_a_thread_that_waits_for_an_answer_keeps_nobody_from_going_on(
    store: Store, loop: asyncio.AbstractEventLoop
) -> None:
    """Neither the limit of its own wait, which a thread watches, nor whoever has what the server waits for."""
    writer = store.database._writer  # type: ignore[attr-defined]
    with store.system.connect() as connection:
        connection.execute(f"LOCK TABLE {store.system.schema}.runs IN ACCESS EXCLUSIVE MODE")  # type: ignore[attr-defined]
        task = sent(store, loop)
        other = in_thread(store.database.write_sync, starting(store))
        until(lambda: writer._on_loop is None)  # the thread has taken over
        connection.rollback()

    assert other.result(LIMIT_S)
    assert loop.run_until_complete(asyncio.wait_for(task, LIMIT_S))
