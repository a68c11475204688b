"""
Test code that uses the library: no sleeping, no mocks.

`make_app` is what makes a program testable: a test gives it a temporary file and a clock of its
own. The functions named ``test_`` are what pytest would collect.
"""

import tempfile
from pathlib import Path

from action_retrier import ActionCtx, App, Failed, Success, SyncActionRetrier
from action_retrier.testing import ManualClock, crash_after, run_until_idle_sync


async def fetch(ctx: ActionCtx, url: str) -> str:
    if "down" in url or ctx.attempt == 1:
        raise ConnectionError(f"{url} does not answer")
    return "content"


def make_app(database: str | None = None, clock: ManualClock | None = None) -> App:
    app = App(database, clock=clock)
    app.action(initial_backoff_ms=1_000, max_failures=2, jitter=0)(fetch)
    return app


def test_a_page_is_fetched_again_after_a_second(tmp_path: Path) -> None:
    clock = ManualClock()
    app = make_app(f"sqlite:///{tmp_path}/test.db", clock)
    retrier = SyncActionRetrier(app)
    with app, app.worker() as worker:
        run_id = retrier.run(app, "testing_your_code:fetch", {"url": "https://example.com"})
        worker.until_idle()
        assert retrier.status(app, run_id).type == "inProgress"

        clock.advance(999)
        worker.until_idle()
        assert retrier.status(app, run_id).type == "inProgress"

        clock.advance(1)
        worker.until_idle()
        assert retrier.wait(app, run_id) == Success("content")


def test_a_page_that_stays_away_is_given_up(tmp_path: Path) -> None:
    clock = ManualClock()
    app = make_app(f"sqlite:///{tmp_path}/test.db", clock)
    retrier = SyncActionRetrier(app)
    with app, app.worker() as worker:
        run_id = retrier.run(app, "testing_your_code:fetch", {"url": "https://down.example.com"})
        for _ in range(3):
            worker.until_idle()
            clock.advance(60_000)
        assert retrier.wait(app, run_id) == Failed("https://down.example.com does not answer", "ConnectionError")
        assert [attempt.delay_ms for attempt in retrier.get(app, run_id).attempts] == [1_000, 2_000, None]


def test_a_page_is_fetched_once_more_if_the_worker_dies(tmp_path: Path) -> None:
    app = make_app(f"sqlite:///{tmp_path}/test.db", ManualClock())
    with app:
        SyncActionRetrier(app).run(app, "testing_your_code:fetch", {"url": "https://example.com"})
        with crash_after(app, "action", nth=2):  # the second attempt has the page, and nobody knows
            run_until_idle_sync(app, jump=True)
        (run,) = run_until_idle_sync(app, jump=True)
        assert [attempt.error_type for attempt in run.attempts] == ["ConnectionError", "WorkerLost", None]


if __name__ == "__main__":
    for test in (
        test_a_page_is_fetched_again_after_a_second,
        test_a_page_that_stays_away_is_given_up,
        test_a_page_is_fetched_once_more_if_the_worker_dies,
    ):
        with tempfile.TemporaryDirectory() as folder:
            test(Path(folder))
        print(test.__name__, "passed")
