"""What is wrong with a command line is said in one line on stderr, with exit code 2; nothing is touched."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from action_retrier import App
from action_retrier.drivers.sqlite import SqliteDatabase

READERS = [
    ("list",),
    ("show", "x"),
    ("status", "x"),
    ("cancel", "x"),
    ("cancel", "--all"),
    ("retry", "x"),
    ("retry", "--all"),
    ("cleanup", "x"),
    ("doctor",),
]
COMMANDS = ["worker", "list", "show", "status", "cancel", "retry", "cleanup", "doctor", "migrate", "demo"]


@pytest.mark.parametrize("command", READERS, ids=" ".join)
@pytest.mark.parametrize("where", [("--database", "sqlite:///missing.db"), ("--app", "job:app"), ()], ids=" ".join)
def test_what_only_looks_creates_no_database(run, folder, command, where):
    before = {path.name for path in folder.iterdir()}

    said = run(*command, *where)

    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"Error: no such database: {folder}/")
    assert said.err.count("\n") == 1
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before


@pytest.mark.parametrize("command", [one for one in READERS if one != ("doctor",)], ids=" ".join)
def test_what_only_looks_makes_no_tables_in_a_database_of_others(run, folder, command):
    (folder / "theirs.db").touch()

    said = run(*command, "--database", "sqlite:///theirs.db")

    assert said.code == 1
    assert "the schema is missing" in said.err
    assert "action-retrier migrate --database sqlite:///theirs.db" in said.err
    assert (folder / "theirs.db").stat().st_size == 0


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("nowhere:app", "no module named 'nowhere' in {folder} or on Python's path"),
        ("job.sub:app", "no module named 'job.sub' in {folder} or on Python's path"),
        ("job:nothing", "module 'job' has no attribute 'nothing'; Apps in it: job:app"),
        ("job:not_an_app", "'job:not_an_app' is not an App but of type 'int'"),
        ("job:double", "'job:double' is not an App but of type 'Action'"),
        ("job", "'job' is not of the form MODULE:APP, such as shop.jobs:app"),
        ("job:", "'job:' is not of the form MODULE:APP, such as shop.jobs:app"),
        (":app", "':app' is not of the form MODULE:APP, such as shop.jobs:app"),
        ("job.py:app", "'job.py:app' names a file: name the module, such as job:app"),
        ("./shop/job.py:app", "'./shop/job.py:app' names a file: name the module, such as shop.job:app"),
        (
            "needs:app",
            "module 'needs' cannot be imported: ModuleNotFoundError: No module named 'lacking' (needs.py, line 2)",
        ),
        ("wrong:app", "module 'wrong' cannot be imported: ZeroDivisionError: division by zero (wrong.py, line 3)"),
        ("syntax:app", "module 'syntax' cannot be imported: SyntaxError: '(' was never closed (syntax.py, line 1)"),
        ("exits:app", "module 'exits' cannot be imported: SystemExit: 3 (exits.py, line 1)"),
    ],
)
def test_an_app_that_cannot_be_found(run, write, folder, target, problem):
    write("needs.py", "import os\nimport lacking")
    write("wrong.py", "def divide():\n    return 1\nx = divide() / 0")
    write("syntax.py", "x = (")
    write("exits.py", "raise SystemExit(3)")

    for command in (("list", "--app"), ("worker",)):
        said = run(*command, target)
        assert (said.code, said.out, said.err) == (2, "", f"Error: {problem.format(folder=folder)}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--database", "mysql://me:secret@host/x"),
        ("list", "--database", "nonsense"),
        ("list", "--database", "sqlite://:memory:"),
        ("list", "--database", "sqlite:///job.db?mode=wrong"),
        ("list", "--namespace", "Wrong"),
        ("list", "--app", "job:app", "--namespace", "Wrong"),
        ("list", "--app", "job:app", "--database", "mysql://me:secret@host/x"),
        ("migrate", "--database", "mysql://me:secret@host/x"),
        ("doctor", "--database", "mysql://me:secret@host/x"),
        ("worker", "job:app", "--database", "mysql://me:secret@host/x"),
        ("list", "--state", "sleeping"),
        ("list", "--callback", "sleeping"),
        ("list", "--limit", "0"),
        ("list", "--limit", "1001"),
        ("list", "--limit", "many"),
        ("list", "--cursor", "nonsense"),
        ("list", "--action", ""),
        ("list", "--unknown"),
        ("show",),
        ("cancel",),
        ("retry",),
        ("cancel", "x", "--all"),
        ("cancel", "x", "--queue", "mail"),
        ("retry", "--all", "--action", "job:fail"),
        ("worker",),
        ("worker", "job:app", "--app", "other:app"),
        ("worker", "job:app", "--concurrency", "0"),
        ("worker", "job:app", "--processes", "0"),
        ("worker", "job:app", "--grace-ms", "-1"),
        ("worker", "job:app", "--grace-ms", "nan"),
        ("worker", "job:app", "--grace-ms", "inf"),
        ("worker", "job:app", "--queue", ""),
        ("worker", "job:app", "--import", "nowhere"),
        ("unknown",),
    ],
    ids=" ".join,
)
def test_wrong_usage_has_exit_code_2_and_no_traceback(run, arguments):
    with App("sqlite:///job.db"):
        said = run(*arguments)

    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in said.err
    assert "secret" not in said.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("list", "--limit", "0"), "--limit must be at least 1, not 0"),
        (("list", "--limit", "1001"), "--limit must be at most 1000, not 1001"),
        (("list", "--limit", "many"), "--limit must be a whole number, not 'many'"),
        (("list", "--limit", "٣"), "--limit must be a whole number, not '٣'"),
        (("list", "--limit", "9" * 5000), f"--limit must be a whole number, not '{'9' * 5000}'"),
        (("list", "--state", "bad"), "--state must be one of pending, running, succeeded, failed, canceled, not 'bad'"),
        (("list", "--callback", "bad"), "--callback must be one of none, pending, done, not 'bad'"),
        (("worker", "job:app", "--concurrency", "0"), "--concurrency must be at least 1, not 0"),
        (("worker", "job:app", "--processes", "-1"), "--processes must be at least 1, not -1"),
        (("worker", "job:app", "--grace-ms", "long"), "--grace-ms must be a number of milliseconds, not 'long'"),
        (("demo", "--seed", "x"), "--seed must be a whole number, not 'x'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_a_value_that_cannot_be_used_is_named_with_its_option(run, arguments, problem):
    said = run(*arguments)

    assert (said.code, said.out, said.err) == (2, "", f"Error: {problem}\n")


def test_help_tells_what_can_be_chosen_and_what_is_taken_without(run):
    said = run("list", "--help", columns=120)

    assert "--state [pending|running|succeeded|failed|canceled]" in said.out
    assert "1 to 1000." in said.out
    assert "[default: 100]" in said.out


def test_a_database_that_is_none_is_a_no(run, folder):
    (folder / "job.db").write_text("not a database " * 500)

    said = run("list", "--app", "job:app")

    assert (said.code, said.out) == (1, "")
    assert "the file is no SQLite database" in said.err
    assert said.err.count("\n") == 1


def test_a_file_that_this_user_may_not_open_is_a_no(run, shop, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied", "job.db-gate")

    monkeypatch.setattr(SqliteDatabase, "open", refuse)

    said = run("list", "--database", "sqlite:///job.db")

    assert (said.code, said.out, said.err) == (1, "", "Error: [Errno 13] Permission denied: 'job.db-gate'\n")


def test_an_app_that_names_no_database_takes_the_one_that_the_command_names(run, write, shop):
    write("free.py", "from action_retrier import App\napp = App()")
    run_id = shop.start("job:double", {"x": 4})

    assert run("status", run_id, "--app", "free:app", "--database", "sqlite:///job.db").out == "in progress\n"


def test_an_app_is_not_moved_to_a_database_that_is_not_its_own(run, shop):
    said = run("list", "--app", "job:app", "--database", "sqlite:///other.db")

    assert said.code == 2
    assert "job:app works on" in said.err


def test_an_app_that_is_an_attribute_of_something(run, write, shop):
    write("holder.py", "import job\nclass Settings:\n    app = job.app")

    assert run("list", "--app", "holder:Settings.app").code == 0


@pytest.mark.parametrize("where", [("--app", "job:app"), ("--database", "sqlite:///job.db")], ids=" ".join)
def test_a_namespace_is_another_installation(run, shop, where):
    run_id = shop.start("job:double", {"x": 4})

    assert run("list", *where, "--namespace", "other", "--json").json == {"runs": [], "cursor": None}
    assert run("status", run_id, *where, "--namespace", "other").code == 1
    assert run("cancel", "--all", *where, "--namespace", "other", "--json").json == {"canceled": 0}
    assert run("doctor", *where, "--namespace", "other", "--json").json["namespace"] == "other"
    assert run("status", run_id, *where).code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_can_be_read(run, command):
    said = run(command, "--help", columns=80)

    assert said.code == 0
    example = said.out.split("Example")[1].splitlines()[1]
    assert example.startswith(f"    action-retrier {command}")
    assert "\x1b" not in said.out


def test_no_command_at_all_shows_the_commands(run):
    said = run()

    assert said.code in {0, 2}
    assert all(f"\n  {command} " in said.out + said.err for command in COMMANDS)
    assert "..." not in (said.out + said.err).split("Exit codes")[0].split("Commands:")[1]


def test_what_is_piped_has_no_colours_even_if_the_terminal_would(folder, start, shop):
    run_id = shop.start("job:fail", max_failures=0)
    shop.work()

    for command in (["list"], ["show", run_id], ["doctor"]):
        process = start(*command, "--app", "job:app")
        process.wait()
        assert process.out
        assert "\x1b" not in str(process)


def test_a_reader_that_leaves_early_is_no_error(folder, shop):
    for x in range(50):
        shop.start("job:double", {"x": x})
    command = f"{sys.executable} -m action_retrier list --app job:app | head -n 1"

    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("ID ")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_python_m_and_the_installed_script_are_one_program(folder, start):
    process = start("--version")
    script = Path(sys.executable).with_name("action-retrier")

    assert process.wait() == 0
    assert process.out[0].startswith("action-retrier ")
    if script.exists():
        done = subprocess.run([script, "--version"], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == process.out


def test_the_library_imports_nothing_of_the_command_line(folder):
    source = "import sys, action_retrier; print({'typer', 'rich', 'action_retrier.cli'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)

    assert ast.literal_eval(done.stdout.strip().replace("set()", "()")) == ()


def test_the_demo_is_handed_what_it_was_asked_for(run, monkeypatch):
    asked = []

    def run_demo(**options):
        asked.append(options)
        return 1

    monkeypatch.setattr("action_retrier.demo.run.run_demo", run_demo)

    assert run("demo", "--keep", "--seed", "7", "--json", "--database", "sqlite:///x.db").code == 1
    assert asked == [{"keep": True, "seed": 7, "json": True, "database": "sqlite:///x.db"}]


def test_a_demo_that_cannot_use_a_database_is_wrong_usage(run, monkeypatch):
    def run_demo(**_):
        raise ValueError("it has a table 'orders' already")

    monkeypatch.setattr("action_retrier.demo.run.run_demo", run_demo)

    said = run("demo")

    assert (said.code, said.err) == (2, "Error: it has a table 'orders' already\n")
