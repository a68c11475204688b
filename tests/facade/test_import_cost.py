"""What `import action_retrier` costs, and what it leaves alone."""

import json
import statistics

import pytest

PAIRS = 7
LIMIT_S = 0.150

MEASURE = """
import sys
import time

begin = time.process_time()
{statement}
print(time.process_time() - begin)
"""

USE = """
from action_retrier import App, SyncActionRetrier

app = App("sqlite:///import.db")
with app:
    SyncActionRetrier(app).list(app)
"""

NEVER = [
    "aiosqlite",
    "asyncpg",
    "click",
    "django",
    "fastapi",
    "hypothesis",
    "multiprocessing",
    "psycopg",
    "psycopg_pool",
    "pytest",
    "rich",
    "sqlalchemy",
    "starlette",
    "typer",
    "unittest",
]


@pytest.fixture(autouse=True)
def not_measured(scripts):
    """Under `make coverage` these programs would bear what measures them."""
    scripts.environment.pop("COVERAGE_PROCESS_CONFIG", None)


def test_the_import_takes_less_than_150_ms_over_pydantic(scripts):
    """Measured in pairs in one run, in processor time, so that a busy machine is no cost of ours; medians count."""
    scripts.write("pydantic_alone.py", MEASURE.format(statement="from pydantic import BaseModel, TypeAdapter"))
    scripts.write("ours.py", MEASURE.format(statement="import action_retrier"))
    scripts.run("pydantic_alone.py")
    scripts.run("ours.py")  # both are compiled and in the page cache now
    pairs = [
        (float(scripts.run("pydantic_alone.py").stdout), float(scripts.run("ours.py").stdout)) for _ in range(PAIRS)
    ]
    alone, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    assert ours - alone < LIMIT_S, f"pydantic {alone * 1_000:.0f} ms, ours {ours * 1_000:.0f} ms: {pairs}"


@pytest.mark.parametrize(
    "source",
    [
        "import action_retrier",
        USE,
    ],
    ids=["imported", "used on SQLite"],
)
def test_what_is_not_needed_is_not_imported(scripts, source):
    """No other database's driver, no framework, no terminal: whoever does not use them does not pay for them."""
    scripts.write("job.py", f"{source}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))\n")
    loaded = set(json.loads(scripts.run("job.py").stdout))
    assert loaded & set(NEVER) == set()


def test_a_worker_process_imports_nothing_for_tables(scripts):
    """It prints none, and lives for long."""
    scripts.write("job.py", "import action_retrier.cli\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))\n")
    loaded = set(json.loads(scripts.run("job.py").stdout))
    assert loaded & {*NEVER, "pygments"} - {"typer", "click"} == set()


def test_the_import_has_no_side_effects(scripts):
    """No file, no thread, no handler, no output, no warning."""
    scripts.write(
        "job.py",
        """
        import logging, threading
        before = threading.active_count()
        import action_retrier
        print(threading.active_count() - before)
        print([type(handler).__name__ for handler in logging.getLogger().handlers])
        """,
    )
    files = set(scripts.folder.iterdir())
    done = scripts.run("-W", "error", "job.py", ACTION_RETRIER_DATABASE_URL="mysql://unused/")
    assert done.stdout.splitlines() == ["0", "[]"]
    assert done.stderr == ""
    assert {path for path in scripts.folder.iterdir() if path.name != "__pycache__"} == files


def test_an_app_creates_no_file_before_it_is_used(scripts):
    """The database is opened on first use, not when the App is made or functions are registered."""
    scripts.write(
        "job.py",
        """
        from action_retrier import ActionRetrier, App, SyncActionRetrier

        app = App("sqlite:///job.db")

        @app.action
        def charge(order_id: int) -> None: ...

        charge.bind(order_id=7)
        ActionRetrier(app), SyncActionRetrier(app)
        """,
    )
    scripts.run("job.py")
    assert [path.name for path in scripts.folder.iterdir() if path.name != "__pycache__"] == ["job.py"]
