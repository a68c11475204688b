"""The whole demo: start the parts, kill a worker, watch until all is done, give the verdict."""

import json as jsonlib
import logging
import os
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console

from action_retrier import App, Run

from .display import Display, make_display, print_verdict
from .evidence import Evidence, LogRow, read_journal, read_ledger, stored
from .plan import CALLBACK_TRIES, load_events, make_plan
from .processes import Child, Children
from .tables import SELECT_ORDERS, SELECT_WEBHOOK_LOG, connect, create_tables
from .verify import Check, Verdict, as_json, judge
from .watch import Watch

CONCURRENCY = 16


def run_demo(*, keep: bool, seed: int, json: bool, database: str | None) -> int:
    """
    Deliver several hundred webhooks and verify that every promise held.

    Args:
        keep: leave the temporary database and all logs, and print where they are.
        seed: decides which deliveries fail, and how.
        json: print the verdict as one JSON object and nothing else.
        database: the URL of a database to use and to keep, in which no table `orders` or
            `webhook_log` may exist; None makes a temporary one.

    Returns:
        0 if everything held, 1 if not.

    Raises:
        ValueError: *database* has a table `orders` or `webhook_log` already.
    """
    return Demo(keep=keep, seed=seed, json=json, database=database).run()


class Demo:
    """One run of the demo, from its folder to its verdict."""

    def __init__(self, *, keep: bool, seed: int, json: bool, database: str | None) -> None:
        self._keep = keep
        self._seed = seed
        self._json = json
        self._database = database
        self._console = Console()
        self._plan = make_plan(seed, load_events())

    def run(self) -> int:
        """Do it all. Returns the exit code."""
        started_at = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="action-retrier-demo-"))
        database = self._database or f"sqlite:///{folder / 'demo.db'}"
        try:
            create_tables(database)
            with terminable(), quiet():
                verdict = self._perform(folder, database)
            self._report(verdict, folder, database, time.monotonic() - started_at)
        finally:
            if not self._keep:
                shutil.rmtree(folder, ignore_errors=True)
        return 0 if verdict.holds else 1

    def collect(self, database: str, folder: Path, journal: list[str], runs: list[Run]) -> Evidence:
        """Ask all witnesses."""
        with closing(connect(database)) as db:
            log = tuple(LogRow(*row) for row in db.execute(SELECT_WEBHOOK_LOG).fetchall())
            orders = dict(db.execute(SELECT_ORDERS).fetchall())
        tries_file = folder / CALLBACK_TRIES
        tries = tries_file.stat().st_size if tries_file.exists() else 0
        ledger = read_ledger(folder / "ledger.jsonl")
        return Evidence(read_journal(journal), ledger, tuple(map(stored, runs)), log, orders, tries)

    def _perform(self, folder: Path, database: str) -> Verdict:
        with ExitStack() as stack:
            app = stack.enter_context(App(database))
            children = stack.enter_context(Children(folder, {"ACTION_RETRIER_DATABASE_URL": database}))
            if not self._json:
                self._console.print(OPENING, highlight=False, soft_wrap=True)
            display = stack.enter_context(make_display(self._console, silent=self._json))
            receiver = self._open_receiver(children, folder)
            port = int(jsonlib.loads(receiver.first_line())["port"])
            workers = [start_worker(children, number) for number in (1, 2)]
            shop = self._open_shop(children, port, folder)
            display.happened(f"shop, receiver, {workers[0].name} and {workers[1].name} started")
            replace = partial(start_worker, children, 3)
            watch = Watch(app, shop, port, workers=workers, start_replacement=replace, display=display)
            runs = watch.until_done()
            did_their_work = Check("every process did its work", tuple(dismiss(shop, receiver, workers, display)))
            verdict = judge(self.collect(database, folder, shop.lines, runs), self._plan)
            return Verdict(verdict.figures, (*verdict.checks, did_their_work))

    def _open_receiver(self, children: Children, folder: Path) -> Child:
        ledger = str(folder / "ledger.jsonl")
        arguments = ("--seed", str(self._seed), "--ledger", ledger)
        return children.start("receiver", "-m", "action_retrier.demo.receiver", *arguments)

    def _open_shop(self, children: Children, port: int, folder: Path) -> Child:
        endpoint = f"http://127.0.0.1:{port}/webhooks"
        arguments = ("--seed", str(self._seed), "--endpoint", endpoint, "--folder", str(folder))
        return children.start("shop", "-m", "action_retrier.demo.shop", *arguments)

    def _report(self, verdict: Verdict, folder: Path, database: str, seconds: float) -> None:
        kept = self._keep or self._database is not None
        if self._json:
            extra = {"seed": self._seed, "seconds": round(seconds, 1), "database": database if kept else None}
            print(jsonlib.dumps(as_json(verdict) | extra, ensure_ascii=False))
            return
        print_verdict(self._console, verdict, seconds=seconds)
        if kept:
            self._say_where(folder, database)
        elif not verdict.holds:
            self._console.print(f"To look into it: --keep --seed {self._seed}", highlight=False)

    def _say_where(self, folder: Path, database: str) -> None:
        url = shlex.quote(database)
        lines = [f"action-retrier {command} --database {url}" for command in ("list", "list --state failed", "show ID")]
        if self._keep:
            lines += [f"ls {shlex.quote(str(folder))}", *CONTENTS]
        # A command that were wrapped could not be copied.
        self._console.print(
            "\nKept, to be looked at:", *lines, sep="\n  ", markup=False, highlight=False, soft_wrap=True
        )


OPENING = f"""\
{len(load_events())} webhooks go to a receiver that fails, stalls and hangs up. Meanwhile, a
worker is killed. Then the receiver's ledger is held against the database.
"""
CONTENTS = (
    "  ledger.jsonl                          all that reached the receiver",
    "  worker-*.log, shop.log, receiver.log  what each process wrote on stderr",
    f"  {CALLBACK_TRIES:36}  a byte a try of one that fails",
)
"""What is in the folder besides the database."""


def start_worker(children: Children, number: int) -> Child:
    """Start one worker, as a user would."""
    arguments = ("worker", "action_retrier.demo.app:app", "--concurrency", str(CONCURRENCY))
    return children.start(f"worker {number}", "-m", "action_retrier", *arguments)


def dismiss(shop: Child, receiver: Child, workers: list[Child], display: Display) -> Iterator[str]:
    """Ask the workers to leave, as a deployment does. Yields what each process did instead of its work."""
    for child in (shop, receiver, *workers):
        has_closed = child is shop and child.exit_code == 0
        if child.exit_code is not None and not has_closed:
            yield f"{child.name} ended by itself with exit code {child.exit_code}: {child.last_words()}"
    if shop.exit_code is None:
        yield "the shop had not closed yet"
    living = [worker for worker in workers if worker.exit_code is None]
    display.happened("the workers are asked to leave (SIGTERM)")
    for worker in living:
        worker.terminate()
    for worker in living:
        code = worker.wait()
        if code != 0:
            end = "stayed" if code is None else f"left with exit code {code}"
            yield f"{worker.name} was asked to leave, and {end}: {worker.last_words()}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the library logs of its daily work out of the story, unless its level was chosen."""
    logger = logging.getLogger("action_retrier")
    level = logger.level
    if not os.environ.get("ACTION_RETRIER_LOG_LEVEL"):
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what it started is ended too."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals.
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
