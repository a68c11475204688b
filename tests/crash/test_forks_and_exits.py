"""What the operating system does to a process behind the library's back: forks, and its end."""

import pytest
from crash_exits import Programs

pytestmark = pytest.mark.crash


@pytest.fixture
def run(scene):
    return Programs(scene)


def test_what_a_forked_child_starts_survives_its_parent(run):
    """
    I1: what the parent has open is the parent's.

    SQLite remembers for the process which locks it holds, which the child has not; a session of PostgreSQL's ends for
    both of them when one says goodbye on its connection.
    """
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
                print(retrier.get(app, retrier.run(app, "a")).action, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            worker.until_idle()
            print({one.state for one in retrier.list(app).runs}, flush=True)
        """)

    assert ended.stdout.splitlines() == ["a", "{'succeeded'}"], ended.stderr


def test_a_transaction_that_stays_open_does_not_keep_the_process_from_ending(run):
    ended = run("""
        from action_retrier.drivers import jobs
        jobs._CLOSE_S = 0.5
        hold(1000)
        print("the end")
        """)

    assert (ended.returncode, ended.stdout) == (0, "the end\n")
