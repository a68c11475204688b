"""No event loop anywhere: `SyncActionRetrier`, `def` actions, plain `with`."""

import threading

from action_retrier import App, Success, SyncActionCtx, SyncActionRetrier

app = App("sqlite:///sync_program.db")
retrier = SyncActionRetrier(app, initial_backoff_ms=50)
halfway = threading.Event()
go_on = threading.Event()


@app.action
def resize(ctx: SyncActionCtx, pictures: list[str]) -> int:
    """Runs in a thread of the worker's, so it may block."""
    for number, _picture in enumerate(pictures, 1):
        ctx.raise_if_canceled()
        ctx.progress(number / len(pictures), f"{number} of {len(pictures)}")
        if number == len(pictures) // 2:
            halfway.set()
            go_on.wait(timeout=10)
    return len(pictures)


def main() -> None:
    with app, app.worker(concurrency=4):
        run_id = retrier.run(app, resize, {"pictures": ["a.png", "b.png", "c.png", "d.png"]})
        halfway.wait(timeout=10)
        assert retrier.status(app, run_id).type == "inProgress"
        go_on.set()
        assert retrier.wait(app, run_id, timeout_ms=10_000) == Success(4)
        run = retrier.get(app, run_id)
    assert run.progress is not None
    print(f"{run.progress.fraction:.0%}: {run.progress.message}")


if __name__ == "__main__":
    main()
