"""
Every failpoint, and every fault that makes sense there, on both databases: what was promised holds all the same.

The cells are made of `action_retrier.testing.failpoints`, so that a new one is tested without writing a test. SIGKILL
is in `test_points.py`, whose cases say exactly what each death costs; a test here sees that it leaves none out.

What a cell is about (how many runs, what they do, the callback's colour, which time the fault happens) is drawn from a
seed, that of pytest-randomly unless $ACTION_RETRIER_TEST_SEED says another one; each failure prints it.
"""

import itertools
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from crash_database import CrashDatabase, PostgresDatabase, SqliteDatabase
from crash_matrix import FAULTS, LEASE_S, Cell, World, cells, emptied
from crash_program import Program, set_lease

from action_retrier import _worker
from action_retrier.drivers.postgres import leases as postgres_leases
from action_retrier.testing import failpoints

from ..stores import postgres_url

pytestmark = pytest.mark.crash

THERE, LEFT_OUT = cells()
SYSTEMS = ("sqlite", "postgres")


def prepare(database: CrashDatabase, folder: Path) -> CrashDatabase:
    """Create the schema and the witnesses."""
    program = Program(database.url, folder)
    with program.app:
        database.install_witnesses()
    program.close()
    return database


@pytest.fixture(scope="module")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    prepare(SqliteDatabase(f"sqlite:///{folder / 'app.db'}"), folder)
    return folder / "app.db"


@pytest.fixture(scope="module")
def postgres_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashDatabase]:
    with fresh_postgres() as database:
        yield prepare(database, tmp_path_factory.mktemp("postgres"))


class fresh_postgres:  # noqa: N801 - used as a function
    """A database with nothing in it."""

    def __enter__(self) -> CrashDatabase:
        self.name = f"matrix_{secrets.token_hex(8)}"
        with psycopg.connect(postgres_url(), autocommit=True) as server:
            server.execute(f"CREATE DATABASE {self.name}")
        self.database = PostgresDatabase(urlsplit(postgres_url())._replace(path=f"/{self.name}").geturl())
        return self.database

    def __exit__(self, *failure: object) -> None:
        self.database.close()
        with psycopg.connect(postgres_url(), autocommit=True) as server:
            server.execute(f"DROP DATABASE {self.name} WITH (FORCE)")


@pytest.fixture
def place(kind: str, cell: Cell, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CrashDatabase]:
    """A database for one cell: with nothing in it, or with the schema and the witnesses."""
    fresh = cell.step.name == "migrate"
    if kind == "sqlite":
        if not fresh:
            shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "app.db")
        database = SqliteDatabase(f"sqlite:///{tmp_path / 'app.db'}")
        database.url += "?synchronous=normal"  # the loss of the disk is not what this is about
        yield database
    elif fresh:
        with fresh_postgres() as database:
            yield database
    else:
        with emptied(request.getfixturevalue("postgres_database")) as database:
            yield database


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything that takes its time take less of it."""
    set_lease(LEASE_S, monkeypatch.setattr)
    monkeypatch.setattr(postgres_leases, "_LOOKS_APART_US", 50_000)
    monkeypatch.setattr(_worker, "_WATCH_S", 0.05)
    monkeypatch.setattr(_worker, "_PROGRESS_S", 0.05)


@pytest.mark.parametrize(
    ("kind", "cell"),
    [pytest.param(kind, cell, id=f"{kind}-{cell}") for kind, cell in itertools.product(SYSTEMS, THERE)],
)
def test_promises_hold(kind: str, cell: Cell, place: CrashDatabase, quick: None, tmp_path: Path, request) -> None:
    seed = os.environ.get("ACTION_RETRIER_TEST_SEED") or str(request.config.getoption("randomly_seed", 0))
    print(f"ACTION_RETRIER_TEST_SEED={seed}")

    World(place, tmp_path, cell, f"{seed} {kind} {cell}").play()


def test_each_cell_is_played_or_left_out_for_a_reason() -> None:
    left_out = list(itertools.chain(*LEFT_OUT.values()))

    assert len(THERE) + len(left_out) == len(failpoints()) * len(FAULTS)
    assert {str(cell) for cell in THERE}.isdisjoint(left_out)
