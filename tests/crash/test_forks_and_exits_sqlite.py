"""Forks, signals and closed event loops while a transaction is open, for which others wait on SQLite."""

import pytest
from crash_exits import Programs

pytestmark = pytest.mark.crash


@pytest.fixture
def run(scene):
    return Programs(scene)


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
