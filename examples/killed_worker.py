"""
A worker process is killed in the middle of a run; the next one finishes it.

At least once, as it looks: the first attempt's side effect has happened, and the second attempt
begins from the start.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from action_retrier import App, Success, SyncActionCtx, SyncActionRetrier

app = App("sqlite:///killed_worker.db")
retrier = SyncActionRetrier(app)


@app.action
def import_file(ctx: SyncActionCtx, name: str) -> str:
    Path(f"{name}.{ctx.attempt}").touch()
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    return f"imported {name}"


def main() -> None:
    run_id = retrier.run(app, import_file, {"name": "people"})

    killed = subprocess.run([sys.executable, __file__, "worker"], check=False)  # noqa: S603 - this very file
    assert killed.returncode == -signal.SIGKILL
    assert retrier.get(app, run_id).state == "running"  # nobody has looked yet

    with app.worker():
        assert retrier.wait(app, run_id, timeout_ms=30_000) == Success("imported people")
    lost, last = retrier.get(app, run_id).attempts
    assert lost.error_type == "WorkerLost"
    assert last.error_type is None
    assert sorted(path.name for path in Path().glob("people.*")) == ["people.1", "people.2"]
    print(f"attempt {lost.number}: {lost.error}")


if __name__ == "__main__":
    if "worker" in sys.argv:
        app.run_worker_sync()
    else:
        main()
