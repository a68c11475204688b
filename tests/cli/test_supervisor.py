"""`worker --processes P`: a supervisor and its children, killed and told to stop in every way."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from action_retrier import Completed, Success
from action_retrier.cli import terminal

PID = r"worker process (\d+) is ready"


@pytest.fixture
def supervise(start):
    """Start a supervisor, and wait until its processes are ready."""

    def call(*arguments, processes=2, **options):
        supervisor = start("worker", "job:app", "--processes", str(processes), *arguments, **options)
        return supervisor, [int(pid) for pid in supervisor.hear(PID, processes)]

    return call


def test_it_keeps_so_many_processes_and_they_work(supervise, retrier, folder):
    supervisor, pids = supervise(processes=3)

    assert supervisor.out[0] == f"supervisor {supervisor.pid} keeps 3 worker processes running"
    assert [line for line in supervisor.out if "database" in line] == [f"database: {folder}/job.db (namespace default)"]
    assert len({supervisor.pid, *pids}) == 4
    assert retrier.wait(retrier.start("job:print_pid")).return_value in pids
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0


def test_processes_do_not_write_into_each_others_lines(monkeypatch):
    """Where Python does not buffer its output, as in most containers, each write is one of the process's own."""
    written = []

    class Unbuffered(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            written.append(bytes(data))
            return len(data)

    for name, tell in (("stdout", terminal.say), ("stderr", terminal.complain)):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(Unbuffered(), write_through=True))
        tell(name)

    assert written == [b"stdout\n", b"stderr\n"]


def test_as_json_every_line_is_an_event(start):
    supervisor = start("worker", "job:app", "--processes", "2", "--json")
    supervisor.hear('"ready"', 2)
    supervisor.signal(signal.SIGTERM)
    supervisor.wait()

    events = [json.loads(line) for line in supervisor.out]
    assert events[0] == {"event": "supervising", "pid": supervisor.pid, "processes": 2}
    assert sorted(one["event"] for one in events[1:]) == ["ready", "ready", "starting", "starting"]


def test_options_reach_every_process(start, write, retrier):
    write("mail.py", "from job import app\n\n@app.action\ndef send() -> str:\n    return 'sent'\n")
    options = ("--import", "mail", "--queue", "a", "--queue", "b", "--concurrency", "7", "--namespace", "default")
    supervisor = start("worker", "job:app", "--processes", "2", *options, "--database", "sqlite:///job.db")

    said = supervisor.hear("is ready", 2)

    assert all(line.endswith("actions, queues a, b, up to 7 attempts at once") for line in said)
    assert retrier.wait(retrier.start("mail:send", queue="b")) == Success("sent")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_ends_is_replaced(supervise, is_alive, number):
    supervisor, pids = supervise()

    os.kill(pids[0], number)
    replacement = int(supervisor.hear(PID, 3)[2])

    assert is_alive(replacement)
    assert is_alive(pids[1])
    assert not is_alive(pids[0])
    assert supervisor.hear(rf"worker process {pids[0]} has ended")
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert len([line for line in supervisor.out if line.startswith("database: ")]) == 1


def test_a_process_that_was_ready_is_replaced_however_often_it_dies(supervise):
    """A run that kills its worker must not end the supervisor, which is there for that."""
    supervisor, pids = supervise()

    for number in range(6):
        os.kill(pids[number], signal.SIGKILL)  # the oldest
        pids = [int(pid) for pid in supervisor.hear(PID, number + 3)]

    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_every_process(supervise, retrier, folder, is_alive, number):
    supervisor, pids = supervise("--concurrency", "1")
    run_ids = [retrier.start("job:until_released") for _ in range(2)]
    supervisor.hear("^began", 2)

    supervisor.signal(number)
    supervisor.hear("stopping; what has begun may end", 2)
    (folder / "release").touch()

    assert supervisor.wait() == 0
    assert [retrier.status(run_id) for run_id in run_ids] == [Completed(Success("released"))] * 2
    assert not any(map(is_alive, pids))


def test_a_second_signal_is_passed_on_and_ends_the_grace_time(supervise, retrier):
    supervisor, _ = supervise("--concurrency", "1")
    run_ids = [retrier.start("job:until_stopped") for _ in range(2)]
    supervisor.hear("^began", 2)

    supervisor.signal(signal.SIGTERM)
    supervisor.hear("stopping; what has begun may end", 2)
    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 0
    assert [retrier.get(run_id).attempts[0].error_type for run_id in run_ids] == ["WorkerStopped"] * 2


def test_a_signal_to_the_whole_group_counts_once(supervise, retrier, folder):
    """Ctrl-C in a terminal, and service managers, signal the processes as well as their supervisor."""
    supervisor, _ = supervise("--concurrency", "1")
    run_id = retrier.start("job:until_released")
    supervisor.hear("^began")

    os.killpg(supervisor.pid, signal.SIGINT)
    supervisor.hear("stopping; what has begun may end", 2)
    supervisor.hear("passed on to the worker processes")
    (folder / "release").touch()

    assert supervisor.wait() == 0
    assert retrier.status(run_id) == Completed(Success("released"))
    assert "again" not in str(supervisor).replace("(a second signal ends that)", "")


def test_actions_that_ignore_the_stop_do_not_keep_the_supervisor(supervise, retrier, is_alive):
    supervisor, pids = supervise("--concurrency", "1", "--grace-ms", "50")
    for action in ("job:thread_that_ignores", "job:task_that_ignores"):
        retrier.start(action)
    supervisor.hear("^began", 2)

    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 0
    assert not any(map(is_alive, pids))


def test_a_process_that_has_to_be_left_makes_the_exit_code_1(supervise, retrier):
    supervisor, _ = supervise("--grace-ms", "50")
    retrier.start("job:loop_that_is_blocked")
    supervisor.hear("^began")

    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 1


def test_the_processes_end_when_the_supervisor_is_killed(supervise, retrier, folder, is_alive, eventually):
    supervisor, pids = supervise("--concurrency", "1")
    run_id = retrier.start("job:until_released")
    supervisor.hear("^began")

    supervisor.signal(signal.SIGKILL)
    supervisor.hear("the supervisor is gone: stopping; what has begun may end", 2)
    (folder / "release").touch()

    eventually(lambda: not any(map(is_alive, pids)), "the processes end")
    assert retrier.status(run_id) == Completed(Success("released"))


def test_what_prevents_every_start_is_said_once_and_ends_it(start, write):
    write("broken.py", "import lacking")
    supervisor = start("worker", "broken:app", "--processes", "4")

    assert supervisor.wait() == 2
    assert len([line for line in supervisor.err if "No module named 'lacking'" in line]) == 1
    assert supervisor.err[-1] == "Error: no worker process gets ready (exit code 2, see above): giving up"


def test_a_start_that_fails_again_and_again_ends_it(start, write):
    write("lost.py", "from action_retrier import App\napp = App('sqlite:///nowhere/x.db')")
    supervisor = start("worker", "lost:app", "--processes", "2")

    assert supervisor.wait() == 1
    assert len(supervisor.hear("has ended")) == 5
    assert supervisor.err[-1] == "Error: no worker process gets ready (exit code 1, see above): giving up"


def test_a_bad_deployment_does_not_end_those_that_still_work(supervise, write, is_alive, retrier):
    supervisor, pids = supervise()
    write("job.py", "import lacking")

    os.kill(pids[0], signal.SIGKILL)
    supervisor.hear("No module named 'lacking'", 2)

    assert is_alive(pids[1])
    assert retrier.wait(retrier.start("job:double", {"x": 4})) == Success(8)
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0


def test_a_signal_while_the_processes_start_ends_them(start, write, is_alive):
    write("slow.py", "import os, threading\nprint('importing', os.getpid(), flush=True)\nthreading.Event().wait()")
    supervisor = start("worker", "slow:app", "--processes", "2")
    (pid,) = supervisor.hear(r"importing (\d+)")

    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 0
    assert not is_alive(int(pid))


def test_a_process_that_fails_to_start_as_all_end_is_no_bad_end(start, write):
    write(
        "slow.py",
        """
        import os, signal, threading
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        print("importing", flush=True)
        threading.Event().wait()
        """,
    )
    supervisor = start("worker", "slow:app", "--processes", "2")
    supervisor.hear("importing")

    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 0


def test_what_an_action_starts_neither_reads_nor_holds_the_line(supervise, write, retrier, is_alive, eventually):
    """Were it inherited, a program that reads its input would take the words that are meant for the worker."""
    write(
        "programs.py",
        """
        import subprocess
        from job import app

        @app.action
        def read() -> str:
            return subprocess.run(["cat"], stdout=subprocess.PIPE, text=True, check=True).stdout

        @app.action
        def leave_one() -> int:
            nothing = subprocess.DEVNULL
            return subprocess.Popen(["tail", "-f", "/dev/null"], stdout=nothing, stderr=nothing).pid
        """,
    )
    supervisor, pids = supervise("--import", "programs")

    assert retrier.wait(retrier.start("programs:read")) == Success("")
    left = retrier.wait(retrier.start("programs:leave_one")).return_value
    supervisor.signal(signal.SIGKILL)

    eventually(lambda: not any(map(is_alive, pids)), "the processes end")
    assert is_alive(left)


def test_no_process_of_it_is_left_behind(supervise, folder, eventually):
    supervisor, _ = supervise()
    supervisor.signal(signal.SIGTERM)
    supervisor.wait()

    def mine():
        listed = subprocess.run(["ps", "-A", "-o", "ppid="], capture_output=True, text=True, check=True).stdout
        return str(supervisor.pid) in listed.split()

    assert not mine()
