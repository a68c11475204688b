"""What holds for the files themselves."""

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "action_retrier"
MAX_LINES = 400


def relative(path: Path) -> str:
    """Name *path* as the ids and messages of these tests do."""
    return path.relative_to(ROOT).as_posix()


def by_name(paths: Iterator[Path]) -> list[object]:
    """Make one parameter of each of *paths*."""
    return [pytest.param(path, id=relative(path)) for path in sorted(paths)]


def files_in_git() -> list[Path]:
    """List the files that are tracked, or would be by `git add .`."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, or no git here")
    listing = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for name in listing.stdout.split("\0") if (path := ROOT / name).is_file()]


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    """A path of a home or of this checkout means nothing on any other machine."""
    homes = r"/(?:home|Users)/\w|/root(?=/)|[A-Z]:\\Users\\\w"
    own = re.compile(rf"(?<![\w.])(?:{homes}|{re.escape(str(ROOT))}(?!\w))")
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in files_in_git()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if own.search(line)
    ]

    assert found == []


@pytest.mark.parametrize("path", by_name((PACKAGE / "_sql").rglob("*.sql")))
def test_a_statement_begins_with_its_purpose_and_what_goes_in_and_out(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    header = lines[: next((i for i, line in enumerate(lines) if not line.startswith("--")), None)]

    assert re.match(r"-- (?!In:|Out:)\S", header[0] if header else "")
    assert [line[:7].rstrip() for line in header if re.match(r"-- (In|Out):", line)] == [
        "-- In:",
        "-- Out:",
    ]


@pytest.mark.parametrize("path", by_name(PACKAGE.rglob("*.py")))
def test_a_module_is_short_enough_to_be_one_thing(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


OPENS_IN_SQLITES_DRIVER = {
    "connection.py": "a statement",
    "database.py": "a database that it creates: nobody can have a connection to it",
    "diagnosis.py": "the kernel's table of mounts",
    "locks.py": "a lock file, once for a process",
    "schema.py": "a migration",
}


def test_nothing_opens_a_databases_file_but_sqlite() -> None:
    """Any close of that file ends the locks that SQLite has on it for this process: two writers could damage it."""
    opens = re.compile(r"(?<!def )\b(?:os\.)?open\((?!\))|\.(?:read|write)_(?:text|bytes)\(|\bshutil\.")
    found = {
        path.name
        for path in (PACKAGE / "drivers" / "sqlite").glob("*.py")
        if opens.search(re.sub(r'"""[\s\S]*?"""', "", path.read_text("utf-8")))
    }

    assert found == set(OPENS_IN_SQLITES_DRIVER)


@pytest.mark.parametrize("path", by_name((ROOT / "tests").rglob("*.py")))
def test_no_test_sleeps(path: Path) -> None:
    """Tests own time and wait on signals: a sleep is too short on one machine, wasted on others."""
    assert [f"{relative(path)}:{line}" for line in lines_that_sleep(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("imports", "sleep"),
    [
        ("import time", "time.sleep"),
        ("import time as clock", "clock.sleep"),
        ("import asyncio", "asyncio.sleep"),
        ("from asyncio import sleep as pause", "pause"),
    ],
)
def test_a_sleep_is_seen_under_any_name(imports: str, sleep: str) -> None:
    source = f"{imports}\n{sleep}(0)\n{sleep}(delay)\n{sleep}(1)\n{sleep}(0.01)\n{sleep}(delay=2)"

    assert list(lines_that_sleep(source)) == [4, 5, 6]


def test_an_injected_clock_does_not_sleep() -> None:
    assert list(lines_that_sleep("from fakes import clock\nclock.sleep(1)")) == []


def lines_that_sleep(source: str) -> Iterator[int]:
    """Find the calls of a real clock's sleep with a positive literal."""
    tree = ast.parse(source)
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origin |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, tail = ast.unparse(node.func).partition(".")
        name = f"{origin.get(head, head)}.{tail}".rstrip(".")
        delays = [*node.args[:1], *(keyword.value for keyword in node.keywords)]
        if name in {"time.sleep", "asyncio.sleep"} and any(map(is_positive, delays)):
            yield node.lineno


def is_positive(node: ast.expr) -> bool:
    """Tell whether *node* is a number above zero, written out."""
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value > 0


def test_each_planted_bug_has_a_place() -> None:
    """`make mutants` takes too long for every change, and what it plants follows the code."""
    bugs = tomllib.loads((ROOT / "tests" / "mutants" / "planted.toml").read_text("utf-8"))["bug"]
    places = [(bug["name"], place) for bug in bugs for place in (bug, *bug.get("also", ()))]

    astray = [name for name, place in places if (PACKAGE / place["file"]).read_text("utf-8").count(place["old"]) != 1]

    assert astray == []
    assert len(places) >= len(bugs) >= 50
