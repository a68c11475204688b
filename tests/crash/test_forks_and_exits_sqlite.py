"""What the operating system does to a process behind the library's back: forks, signals, its end."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.crash

LIMIT_S = 20
BEGIN = """
import os, signal, sys, threading, time
from action_retrier import App, DatabaseUnavailable, SyncActionRetrier

app = App("sqlite:///app.db")
retrier = SyncActionRetrier(app)

def hold(seconds):
    held = threading.Event()
    def work():
        with app.transaction():
            held.set()
            time.sleep(seconds)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    held.wait()
    return thread
"""


@pytest.fixture
def run(tmp_path):
    def call(program):
        text = BEGIN + textwrap.dedent(program)
        try:
            return subprocess.run(
                [sys.executable, "-c", text],
                check=False,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                cwd=tmp_path,
            )
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"it does not end: {error.stdout!r} {error.stderr!r}")

    return call


def test_what_a_forked_child_starts_survives_its_parent(run):
    """I1: SQLite remembers for the process which locks it holds; the child has that memory, and not the locks."""
    ended = run("""
        retrier.status(app, retrier.run(app, "a"))  # the parent has everything open
        begun, closed = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            before = retrier.run(app, "a")
            os.write(begun[1], b".")
            os.read(closed[0], 1)
            print(*[before, *(retrier.run(app, "a") for _ in range(5))], flush=True)
            os._exit(0)
        os.read(begun[0], 1)
        app.__exit__(None, None, None)
        os.write(closed[1], b".")
        os.waitpid(child, 0)
        """)
    run_ids = ended.stdout.split()
    assert len(run_ids) == 6, ended.stderr

    again = run(f"print(*(retrier.status(app, run_id).type for run_id in {run_ids!r}))")
    assert again.stdout.split() == ["inProgress"] * 6, again.stderr


def test_parent_and_child_both_go_on_after_a_fork_with_a_worker_at_work(run):
    ended = run("""
        @app.action(name="a")
        def a(): ...

        with app, app.worker() as worker:
            retrier.run(app, "a")
            child = os.fork()
            if child == 0:
                print(retrier.status(app, retrier.run(app, "a")).type, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            worker.until_idle()
            print({one.state for one in retrier.list(app).runs}, flush=True)
        """)

    assert ended.stdout.splitlines() == ["inProgress", "{'succeeded'}"], ended.stderr


def test_a_child_that_was_forked_while_a_transaction_was_open_is_told_so(run):
    """Nothing that it wrote would be safe."""
    ended = run("""
        from action_retrier.drivers.sqlite import users
        users._PATIENCE_S = 0.1
        thread = hold(1)
        child = os.fork()
        if child == 0:
            try:
                retrier.run(app, "a")
            except DatabaseUnavailable as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        thread.join()
        print(retrier.status(app, retrier.run(app, "a")).type)
        """)

    told, parent = ended.stdout.splitlines()
    assert "was in use by a transaction when this process was forked" in told
    assert "fork outside of transactions" in told
    assert parent == "inProgress"


def test_a_signals_handler_that_raises_while_a_transaction_is_waited_for_leaves_nothing_behind(run):
    """`signal(SIGTERM, lambda *_: sys.exit())` is how many programs end."""
    ended = run("""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        hold(1.5)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with app.transaction():
            print("never")
        """)

    assert (ended.returncode, ended.stdout) == (3, "")


def test_an_event_loop_that_is_closed_while_a_transaction_is_waited_for_keeps_it_from_nobody(run):
    ended = run("""
        import asyncio
        thread = hold(1)
        loop = asyncio.new_event_loop()

        async def wait():
            async with app.transaction():
                print("never")

        async def begin():
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0.2)
            return task

        task = loop.run_until_complete(begin())
        loop.close()
        thread.join()
        print(retrier.status(app, retrier.run(app, "a")).type, flush=True)
        os._exit(0)  # the task that was never ended would be complained of
        """)

    assert ended.stdout.split() == ["inProgress"], ended.stderr


def test_a_transaction_that_stays_open_does_not_keep_the_process_from_ending(run):
    ended = run("""
        from action_retrier.drivers import jobs
        jobs._CLOSE_S = 0.5
        hold(1000)
        print("the end")
        """)

    assert (ended.returncode, ended.stdout) == (0, "the end\n")
