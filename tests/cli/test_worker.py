"""`worker`: real processes, which are told to stop and end, whatever their actions do."""

import json
import os
import signal
import sqlite3
from contextlib import closing

import pytest

from action_retrier import App, Completed, InProgress, Success, SyncActionRetrier

STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def loop(request, start_options):
    """Each way to live and to end, on each event loop."""
    start_options += ["--loop", request.param]
    return request.param


@pytest.mark.parametrize("number", STOPS)
def test_its_first_line_tells_the_database_and_from_then_on_it_heeds_signals(start, folder, number):
    worker = start("worker", "job:app")
    worker.hear("^database: ")
    worker.signal(number)

    assert worker.wait() == 0
    assert worker.out[0] == f"database: {folder}/job.db (namespace default)"
    assert "Traceback" not in str(worker)


def test_it_executes_runs_and_tells_that_it_is_ready(start, retrier):
    worker = start("worker", "job:app", "--concurrency", "3", "--queue", "default")
    ready = worker.hear("is ready")[0]
    run_id = retrier.start("job:double", {"x": 4})

    assert retrier.wait(run_id) == Success(8)
    assert ready.startswith(f"worker process {worker.pid} is ready: ")
    assert ready.endswith("actions, queues default, up to 3 attempts at once")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


NAMES_ITS_LOOP = """
import asyncio

from action_retrier import App

app = App("sqlite:///job.db")


@app.action
async def name_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]
"""


def test_it_runs_on_the_event_loop_that_is_asked_for(start, write, retrier, loop):
    write("names.py", NAMES_ITS_LOOP)
    start("worker", "names:app").hear("is ready")

    assert retrier.wait(retrier.start("names:name_loop")) == Success(loop)


@pytest.mark.parametrize("loop", ["auto"], indirect=True)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_runs_on_uvloop_where_that_is_installed(start, write, retrier, processes):
    write("names.py", NAMES_ITS_LOOP)
    start("worker", "names:app", "--processes", processes).hear("is ready")

    assert retrier.wait(retrier.start("names:name_loop")) == Success("uvloop")


@pytest.mark.parametrize("loop", ["auto", "uvloop"], indirect=True)
def test_uvloop_may_be_missing_unless_it_is_asked_for(start, write, retrier, loop):
    """What is called uvloop here is found first, and raises what is raised where there is none."""
    write("uvloop.py", "raise ImportError")
    write("names.py", NAMES_ITS_LOOP)
    worker = start("worker", "names:app")

    if loop == "auto":
        assert retrier.wait(retrier.start("names:name_loop")) == Success("asyncio")
    else:
        assert worker.wait() == 2
        assert worker.err == ["Error: --loop uvloop: it is not installed (pip install 'action-retrier[uvloop]')"]


def test_as_json_every_line_is_an_event(start, folder):
    worker = start("worker", "--app", "job:app", "--json")
    worker.hear('"ready"')
    worker.signal(signal.SIGTERM)
    worker.wait()

    starting, ready = map(json.loads, worker.out)
    assert starting == {
        "event": "starting",
        "pid": worker.pid,
        "database": f"{folder}/job.db",
        "namespace": "default",
    }
    assert (ready["event"], ready["pid"], ready["queues"], ready["concurrency"]) == ("ready", worker.pid, None, 100)
    assert "job:double" in ready["actions"]
    assert ready["mutations"] == ["job:note"]


def test_further_modules_are_imported(start, write, retrier):
    write("mail.py", "from job import app\n\n@app.action\ndef send() -> str:\n    return 'sent'\n")
    worker = start("worker", "job:app", "--import", "mail")
    worker.hear("is ready")

    assert retrier.wait(retrier.start("mail:send")) == Success("sent")


def test_an_app_without_actions_is_warned_of(start, write):
    write("empty.py", "from action_retrier import App\napp = App()")

    assert start("worker", "empty:app").hear("this App has no actions: --import the modules that register them")


def test_a_namespace_holds_for_what_its_actions_start_too(start, write):
    write(
        "chain.py",
        """
        from action_retrier import ActionCtx, ActionRetrier, App

        app = App()
        retrier = ActionRetrier(app)

        @app.action
        async def first(ctx: ActionCtx) -> str:
            return await retrier.run(ctx, second)

        @app.action
        async def second() -> str:
            return "here"
        """,
    )
    with App("sqlite:///chain.db", namespace="eu") as app:
        retrier = SyncActionRetrier(app)
        first = retrier.run(app, "chain:first")
        start("worker", "chain:app", "--namespace", "eu", "--database", "sqlite:///chain.db")
        second = retrier.wait(app, first, timeout_ms=30_000)
        assert retrier.wait(app, second.return_value, timeout_ms=30_000) == Success("here")


def test_a_stop_lets_end_what_has_begun(start, retrier, folder):
    run_id = retrier.start("job:until_released")
    worker = start("worker", "job:app")
    worker.hear("began")
    waits = retrier.start("job:double", {"x": 4}, queue="later")
    worker.signal(signal.SIGTERM)
    worker.hear("SIGTERM: stopping; what has begun may end for 30 s")
    (folder / "release").touch()

    assert worker.wait() == 0
    assert retrier.status(run_id) == Completed(Success("released"))
    assert isinstance(retrier.status(waits), (InProgress, Completed))


def test_a_second_signal_ends_the_grace_time(start, retrier):
    run_id = retrier.start("job:until_stopped")
    worker = start("worker", "job:app")
    worker.hear("began")
    worker.signal(signal.SIGINT)
    worker.hear("SIGINT: stopping")
    worker.signal(signal.SIGINT)

    assert worker.wait() == 0
    assert "gave way" in worker.out
    assert retrier.get(run_id).attempts[0].error_type == "WorkerStopped"


@pytest.mark.parametrize("action", ["thread_that_ignores", "task_that_ignores"])
def test_a_worker_whose_actions_ignore_that_ends_all_the_same_once_all_is_reported(start, retrier, action):
    run_id = retrier.start(f"job:{action}")
    worker = start("worker", "job:app", "--grace-ms", "50")
    worker.hear("began")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    run = retrier.get(run_id)
    assert (run.state, run.failures, run.attempts[0].error_type) == ("pending", 1, "WorkerStopped")
    with closing(sqlite3.connect("job.db")) as db:
        assert db.execute("SELECT count(*) FROM action_retrier_workers").fetchone() == (0,)


def test_a_worker_whose_event_loop_is_blocked_ends_too_and_says_why(start, retrier):
    retrier.start("job:loop_that_is_blocked")
    worker = start("worker", "job:app", "--grace-ms", "50")
    worker.hear("began")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 1
    assert worker.hear("an action keeps this process from stopping, so it leaves; others recover its runs")


def test_a_third_signal_ends_the_process_at_once(start, retrier):
    retrier.start("job:loop_that_is_blocked")
    worker = start("worker", "job:app")
    worker.hear("began")
    for said in ("SIGTERM: stopping", "SIGTERM again: the grace time ends now", "leaving at once"):
        worker.signal(signal.SIGTERM)
        worker.hear(said)

    assert worker.wait() == 1


def test_a_thread_that_an_action_left_behind_does_not_keep_the_process(start, retrier):
    run_id = retrier.start("job:leaves_a_thread")
    worker = start("worker", "job:app")
    worker.hear("began")
    retrier.wait(run_id)
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0


def test_a_signal_while_the_database_keeps_it_waiting_ends_it(start, retrier):
    with closing(sqlite3.connect("job.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        worker = start("worker", "job:app")
        worker.hear("^database: ")
        worker.signal(signal.SIGTERM)

        assert worker.wait() == 0
        assert "is ready" not in str(worker)


def test_a_worker_that_cannot_start_says_so_on_one_line(start, folder, write):
    write("lost.py", "from action_retrier import App\napp = App('sqlite:///nowhere/x.db')")
    worker = start("worker", "lost:app")

    assert worker.wait() == 1
    (line,) = worker.err
    assert line.startswith(f"Error: the directory {folder}/nowhere of the database does not exist: ")


def test_nobody_reads_what_it_prints(start, folder, retrier):
    """A closed pipe is no reason to stop working."""
    reader, writer = os.pipe()
    os.close(reader)
    worker = start("worker", "job:app", stdout=writer)
    os.close(writer)
    worker.hear("works on")

    assert retrier.wait(retrier.start("job:double", {"x": 4})) == Success(8)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_a_child_that_an_action_forks_is_ended_by_a_signal_as_any_other(start, write, retrier):
    write(
        "forks.py",
        """
        import os
        import signal
        import threading
        from job import app

        @app.action(max_failures=0)
        def fork() -> int:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writer, b"I run")
                threading.Event().wait()
            os.read(reader, 16)
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            return os.WTERMSIG(status)
        """,
    )
    start("worker", "job:app", "--import", "forks").hear("is ready")

    assert retrier.wait(retrier.start("forks:fork")) == Success(signal.SIGTERM)


def ended(worker):
    """Return a worker that was told to end once it was ready, and has."""
    worker.hear("is ready")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    return worker


QUEUE = "logging.handlers.QueueHandler(queue.SimpleQueue())"
RICH = "type('Rich', (logging.Handler,), {'console': rich.console.Console(stderr=True), 'emit': SHOW})()"


@pytest.mark.parametrize(
    ("theirs", "is_ours"),
    [
        (f"logging.root.addHandler({QUEUE})", True),
        ("logging.root.addHandler(logging.FileHandler('worker.log'))", True),
        ("logging.root.addHandler(logging.NullHandler())", True),
        ("logging.basicConfig(level='INFO'); logging.root.handlers[0].setLevel('ERROR')", True),
        ("logging.basicConfig(level='INFO')", False),
        ("logging.basicConfig(level='INFO', stream=sys.stdout)", False),
        ("logging.basicConfig(level='INFO', stream=open('/dev/stderr', 'w'))", False),
        (f"logging.basicConfig(level='INFO', handlers=[{RICH}])", False),
        ("logging.basicConfig(); logging.getLogger('action_retrier').propagate = False", True),
    ],
)
def test_what_a_worker_logs_is_shown_once_whatever_handlers_its_module_adds(start, write, theirs, is_ours):
    """Not every handler shows: one that fills a queue, or sends elsewhere, would leave the terminal empty."""
    imports = "import logging, logging.handlers, queue, sys, rich.console\n"
    show = "SHOW = lambda self, record: self.console.print(record.getMessage())\n"
    write("logs.py", f"{imports}{show}{theirs}\nfrom job import app\n")
    worker = ended(start("worker", "logs:app"))

    said = [line for line in [*worker.out, *worker.err] if "has stopped" in line]
    assert len(said) == 1, str(worker)
    assert (" INFO action_retrier: " in said[0]) == is_ours


def test_who_gives_the_logger_a_handler_of_its_own_has_its_lines_there_alone(start, write):
    own = "logging.getLogger('action_retrier').addHandler(logging.FileHandler('worker.log'))"
    write("logs.py", f"import logging\n{own}\nfrom job import app\n")
    worker = ended(start("worker", "logs:app"))

    assert "has stopped" not in str(worker)
