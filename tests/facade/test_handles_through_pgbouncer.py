"""Users' handles that reach PostgreSQL through PgBouncer in transaction mode: nothing may depend on the session."""

import contextlib
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from action_retrier import ActionRetrier, App, InProgress, RunNotFound, SyncActionRetrier

from ..stores import open_system, pgbouncer_url
from ..support import pgbouncer

pytestmark = pytest.mark.skipif(bool(pgbouncer.why_not()), reason=pgbouncer.why_not())


@pytest.fixture
def app(tmp_path: Any) -> Iterator[App]:
    with contextlib.closing(open_system("postgres", tmp_path)) as system:
        app = App(system.url)  # type: ignore[attr-defined]
        app.action(name="charge")(charge)
        with app:
            yield app


def charge(order_id: int = 0) -> None: ...


def test_psycopg_holds_calls_through_a_pooler(app: App) -> None:
    """Each transaction may be in another session; what is prepared in one is not there in the next."""
    retrier = SyncActionRetrier(app)
    with (
        psycopg.connect(pgbouncer_url(), prepare_threshold=None) as one,
        psycopg.connect(pgbouncer_url(), prepare_threshold=None) as two,
    ):
        for connection in (one, two, one, two, two, one):
            run_id = retrier.run(connection, "charge")
            with pytest.raises(RunNotFound):
                retrier.cancel(connection, "01890000-0000-7000-8000-000000000000")
            connection.commit()
            assert retrier.status(app, run_id) == InProgress()
            undone = retrier.run(connection, "charge")
            connection.rollback()
            with pytest.raises(RunNotFound):
                retrier.status(app, undone)


async def test_asyncpg_holds_calls_through_a_pooler(app: App) -> None:
    """Without its cache of statements, as its users have to set it there."""
    retrier = ActionRetrier(app)
    async with (
        asyncpg.create_pool(pgbouncer_url(), statement_cache_size=0, min_size=2, max_size=2) as pool,
        pool.acquire() as one,
        pool.acquire() as two,
    ):
        for connection in (one, two, one, two, two, one):
            async with connection.transaction():
                run_id = await retrier.run(connection, "charge", idempotency_key=None)
            assert await retrier.status(app, run_id) == InProgress()
