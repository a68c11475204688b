"""The pytest plugin, in sessions of pytest of its own."""

import pytest

pytest_plugins = ["pytester"]

SHOP = """
    from action_retrier import ActionCtx, App, SyncActionRetrier

    app = App("sqlite:///production.db")
    retrier = SyncActionRetrier(app)

    @app.action(name="shop:ship", initial_backoff_ms=60_000, jitter=0)
    async def ship(ctx: ActionCtx, order_id: int) -> int:
        if ctx.attempt == 1:
            raise ConnectionError
        return order_id

    def order(order_id: int) -> str:
        return retrier.run(app, ship, {"order_id": order_id})
"""
STRICT = ["-p", "no:cacheprovider", "-p", "no:randomly", "-W", "error"]
WITHOUT_ASYNCIO = ["-p", "no:asyncio"]
WITH_ASYNCIO = ["-o", "asyncio_default_fixture_loop_scope=function"]  # unset, it warns at its start


@pytest.fixture
def session(pytester):
    """Run pytest in a process of its own, in which a warning is an error."""
    pytester.makepyfile(shop=SHOP)

    def run(*options, **modules):
        pytester.makepyfile(**modules)
        return pytester.runpytest_subprocess(*STRICT, *(options or WITHOUT_ASYNCIO))

    return run


def test_an_app_that_is_made_at_import_is_tested_on_a_database_of_the_tests_own(session, pytester):
    done = session(
        test_shop="""
            from action_retrier import Success
            from action_retrier.testing import crash_after, run_until_idle_sync
            from shop import app, order, retrier

            def test_an_order_is_shipped(retrier_isolate, retrier_clock):
                retrier_isolate(app)
                run_id = order(7)
                began = retrier_clock.now()
                (run,) = run_until_idle_sync(app, jump=True)
                assert (run.id, run.result) == (run_id, Success(7))
                assert (retrier_clock.now() - began).total_seconds() == 60

            def test_nothing_is_left_of_another_test(retrier_isolate):
                retrier_isolate(app)
                assert retrier.list(app).runs == []

            def test_a_worker_may_die(retrier_isolate):
                retrier_isolate(app)
                order(8)
                with crash_after(app, "claim"):
                    run_until_idle_sync(app)
                (run,) = run_until_idle_sync(app, jump=True)
                assert run.failures == 1

            def test_the_database_is_a_file_under_tmp_path(retrier_database, tmp_path):
                assert str(tmp_path) in retrier_database

            def test_another_database_and_another_clock(retrier_isolate, tmp_path):
                from action_retrier.testing import ManualClock
                retrier_isolate(app, f"sqlite:///{tmp_path}/mine.db", clock=ManualClock())
                assert app.location.endswith("mine.db")
        """
    )

    done.assert_outcomes(passed=5)
    assert not (pytester.path / "production.db").exists()


@pytest.mark.parametrize("options", [WITHOUT_ASYNCIO, WITH_ASYNCIO], ids=["without pytest-asyncio", "with it"])
def test_it_works_with_and_without_pytest_asyncio(session, options):
    modules = {
        "test_sync": """
            from action_retrier.testing import run_until_idle_sync
            from shop import app, order

            def test_it(retrier_isolate):
                retrier_isolate(app)
                order(1)
                assert len(run_until_idle_sync(app, jump=True)) == 1
        """
    }
    if options == WITH_ASYNCIO:
        modules["test_async"] = """
            import pytest
            from action_retrier import ActionRetrier
            from action_retrier.testing import run_until_idle
            from shop import app, ship

            @pytest.mark.asyncio
            async def test_it(retrier_isolate):
                retrier_isolate(app)
                await ActionRetrier(app).run(app, ship, {"order_id": 1})
                assert len(await run_until_idle(app, jump=True)) == 1
        """

    session(*options, **modules).assert_outcomes(passed=len(modules))


def test_an_open_app_is_an_error_of_the_test(session):
    done = session(
        test_open="""
            from shop import app

            def test_it(retrier_isolate, retrier_database, retrier_clock):
                from action_retrier.testing import isolated
                with isolated(app, retrier_database):
                    with app:
                        retrier_isolate(app)
        """
    )

    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*RuntimeError: * is open: leave its `with` block first*"])


def test_the_test_is_named_that_forgot_to_isolate_the_app(session):
    done = session(
        test_forgotten="""
            from shop import app, order, retrier

            def test_isolates(retrier_isolate):
                retrier_isolate(app)

            def test_forgets():
                order(7)

            def test_is_not_to_blame(retrier_isolate):
                retrier_isolate(app)
        """
    )

    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(
        ["*is open: *It was opened in test_forgotten.py::test_forgets*, which has not isolated it*"]
    )


def test_a_retrier_is_isolated_with_its_app(session):
    done = session(
        test_retrier="""
            from shop import retrier

            def test_it(retrier_isolate):
                retrier_isolate(retrier)
        """
    )

    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*TypeError: pass the App, not *: a retrier follows the App that it was made of*"])


def test_the_database_may_be_overridden(session):
    done = session(
        conftest="""
            import pytest

            @pytest.fixture
            def retrier_database(tmp_path):
                return f"sqlite:///{tmp_path}/ours.db"
        """,
        test_it="""
            from shop import app

            def test_it(retrier_isolate):
                assert retrier_isolate(app).location.endswith("ours.db")
        """,
    )

    done.assert_outcomes(passed=1)


def test_a_database_is_not_taken_from_an_app_that_is_open_on_it(session):
    """What the user's own fixture does at its end, such as to drop a schema, comes after the App has been closed."""
    done = session(
        conftest="""
            import pytest
            from shop import app

            @pytest.fixture
            def retrier_database(tmp_path):
                yield f"sqlite:///{tmp_path}/ours.db"
                assert not app._database.is_open
                assert app.location.endswith("production.db")
        """,
        test_it="""
            from shop import app, order

            def test_it(retrier_isolate):
                retrier_isolate(app)
                order(7)
        """,
    )

    done.assert_outcomes(passed=1)


def test_whoever_asks_again_gets_the_same(session):
    """A test and its fixtures may each ask for it; what one of them has started, the others see."""
    done = session(
        test_again="""
            import pytest
            from action_retrier.testing import ManualClock
            from shop import app, order, retrier

            @pytest.fixture
            def run_id(retrier_isolate):
                retrier_isolate(app)
                return order(7)

            def test_it(retrier_isolate, run_id):
                assert retrier_isolate(app) is app
                assert [run.id for run in retrier.list(app).runs] == [run_id]

            def test_another_database(retrier_isolate, run_id, tmp_path):
                with pytest.raises(RuntimeError, match="is isolated in this test already, with another"):
                    retrier_isolate(app, f"sqlite:///{tmp_path}/other.db")
                with pytest.raises(RuntimeError, match="is isolated in this test already, with another"):
                    retrier_isolate(app, clock=ManualClock())
                assert [run.id for run in retrier.list(app).runs] == [run_id]
        """
    )

    done.assert_outcomes(passed=2)


def test_whoever_does_not_use_it_pays_nothing(session):
    """Nothing of the library is imported, no hook is there, and no option."""
    done = session(
        test_it="""
            import sys

            def test_it(pytestconfig):
                plugin = pytestconfig.pluginmanager.get_plugin("action_retrier")
                assert plugin.__name__ == "action_retrier_pytest"
                assert pytestconfig.pluginmanager.get_hookcallers(plugin) == []
                assert {"action_retrier", "pydantic"}.isdisjoint(sys.modules)
        """
    )

    done.assert_outcomes(passed=1)


def test_its_fixtures_are_documented(session):
    done = session(*WITHOUT_ASYNCIO, "--fixtures", test_it="")

    done.stdout.fnmatch_lines(["retrier_clock*", "*A clock that stands still until the test moves it.*"])
