"""A storm of kills, of workers and of the server itself, which crashes each time that one of its processes is killed."""

import pytest
from crash_database import PostgresDatabase
from crash_storm import storm

from ..support.postgres_server import running_server

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(600)]

RUNS = 5000
KILLS = 50
CRASHES = 20
RESUMED_WITHIN_S = 2


@pytest.fixture
def server():
    """A server of the test's own, which writes to the disk what it has committed."""
    with running_server(fsync="on") as server:
        yield server


@pytest.fixture
def database(server):
    return PostgresDatabase(server.url)


def test_a_storm_over_workers_and_server_loses_nothing(server, scene, capsys):
    """And work goes on as soon as the server accepts connections."""
    result = storm(scene, runs=RUNS, kills=KILLS, crashes=CRASHES, crash=server.crash, within_s=120)

    logs = scene.processes.logs()
    with capsys.disabled():
        print(f"\nPostgreSQL {server.version}, {result.table()}")
        print(f"  live workers taken for dead {logs.count('was taken for dead'):3}")
    assert len(result.stories) == RUNS + CRASHES
    assert {story.row["state"] for story in result.stories.values()} == {"succeeded"}
    assert len(result.resumptions_s) == CRASHES
    assert max(result.resumptions_s) <= RESUMED_WITHIN_S
    assert server.log().count("all server processes terminated; reinitializing") >= CRASHES
