"""What the crash tests share: a database with witnesses, real processes, and a fresh worker at the end."""

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from ..stores import pgbouncer_url, postgres_url, systems_for, with_query
from ..support.pgbouncer import POOLED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from crash_database import CrashDatabase, PostgresDatabase, SqliteDatabase
from crash_program import Program, set_lease
from crash_scene import Scene
from postgres_proxy import Proxy

SHORT_LEASE_S = 2.0
"""Longer than any pause that a busy machine makes."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a scene on each system, unless its module is named after the one that it is about."""
    if "scene" in metafunc.fixturenames:
        metafunc.parametrize("database", systems_for(metafunc.module), indirect=True, scope="function")


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CrashDatabase]:
    """A database with nothing in it."""
    if request.param == "sqlite":
        yield SqliteDatabase(f"sqlite:///{tmp_path / 'app.db'}")
        return
    name = f"crash_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url(), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        url = urlsplit(postgres_url())._replace(path=f"/{name}").geturl()
        if request.param == "pgbouncer":
            pooled = urlsplit(pgbouncer_url())._replace(path=f"/{name}").geturl()
            # Nothing but the end of its lease tells a death there. What is slow waits for one as long as it really is,
            # but for storms, in which nobody lives so long: it takes one who has had a lease to judge others.
            is_patient = request.node.get_closest_marker("slow") and not request.node.get_closest_marker("storm")
            lease_s = None if is_patient else SHORT_LEASE_S
            yield PostgresDatabase(with_query(pooled, POOLED), beside=url, lease_s=lease_s)
        else:
            yield PostgresDatabase(url)
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def scene(tmp_path: Path, database: CrashDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A directory and a database, whose processes are gone when the test ends."""
    if database.lease_s is not None:
        set_lease(database.lease_s, monkeypatch.setattr)
    scene = Scene(tmp_path, database)
    yield scene
    scene.close()


@pytest.fixture
def program(scene: Scene) -> Iterator[Program]:
    """The program, open in the test's own process."""
    scene.prepare()
    program = scene.here()
    with program.app:
        yield program
    program.close()


@pytest.fixture
def proxy(scene: Scene) -> Iterator[Proxy]:
    """A network before the database, which has what it takes."""
    scene.prepare()
    with Proxy(scene.database.url) as proxy:
        yield proxy
