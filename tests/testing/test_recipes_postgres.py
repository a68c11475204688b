"""The recipes of docs/testing.md for PostgreSQL keep tests apart: the library's tables, and the program's own."""

import re
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from ..stores import postgres_url

pytest_plugins = ["pytester"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
SHOP = """
    from action_retrier import App, MutationCtx, SyncActionRetrier

    app = App("postgresql://localhost/production")
    retrier = SyncActionRetrier(app)

    @app.action
    async def ship() -> None: ...

    @app.mutation
    def shipped(ctx: MutationCtx, run_id: str) -> None:
        ctx.db.execute("INSERT INTO shipped VALUES (%s)", (run_id,))

    @app.mutation
    async def shipped_async(ctx: MutationCtx, run_id: str) -> None:
        await ctx.db.execute("INSERT INTO shipped VALUES (%s)", (run_id,))
"""
TESTS = """
    import psycopg
    import pytest
    import shop
    from action_retrier.testing import run_until_idle_sync

    @pytest.mark.parametrize("callback", [shop.shipped, shop.shipped_async])
    def test_it(retrier_isolate, {url}, callback):
        app = retrier_isolate(shop.app)
        with psycopg.connect({url}) as connection:
            connection.execute("CREATE TABLE shipped (run_id text)")
        with psycopg.connect({url}) as connection:  # a handle of the program's own
            run_id = shop.retrier.run(connection, shop.ship, on_complete=callback)
        assert [run.id for run in shop.retrier.list(app).runs] == [run_id]
        run_until_idle_sync(app)
        with psycopg.connect({url}) as connection:
            assert connection.execute("SELECT run_id FROM shipped").fetchall() == [(run_id,)]
"""


def recipes() -> list[str]:
    """Return the two fragments of the page that are about PostgreSQL, the second of which goes on from the first."""
    section = PAGE.read_text("utf-8").partition("## On PostgreSQL")[2]
    return re.findall(r"```python fragment\n(.*?)```", section, re.DOTALL)


def left(prefix: str) -> list[tuple[str]]:
    """Return the schemas and databases of that prefix."""
    with psycopg.connect(postgres_url()) as connection:
        return connection.execute(
            "SELECT name FROM (SELECT nspname FROM pg_namespace UNION SELECT datname FROM pg_database) AS made (name) "
            "WHERE starts_with(name, %s)",
            (prefix,),
        ).fetchall()


@pytest.mark.parametrize(("which", "url"), [(0, "retrier_database"), (1, "database_url")], ids=["database", "schema"])
def test_what_tests_make_is_apart_and_goes_with_them(pytester, which, url):
    there = urlsplit(postgres_url())
    server, database = f"{there.scheme}://{there.netloc}", there.path
    first, second = recipes()
    recipe = first if which == 0 else first.partition("\n")[0] + "\n" + second
    recipe = recipe.replace('"postgresql://localhost"', repr(server)).replace("{SERVER}/test", f"{{SERVER}}{database}")
    prefix = f"recipe_{secrets.token_hex(4)}_"
    assert 'f"test_{' in recipe
    recipe = recipe.replace('f"test_{', f'f"{prefix}{{')
    pytester.makeconftest("import secrets\nimport psycopg\nimport pytest\n" + recipe)
    pytester.makepyfile(shop=SHOP, test_shop=TESTS.format(url=url))

    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error")

    done.assert_outcomes(passed=2)
    assert left(prefix) == []
