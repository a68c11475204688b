"""huey on SQLite; variant ``fsync`` has it wait for the disk, as ours always does."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from huey import SqliteHuey

from benchmarks.protocol import Peer, main, tasks

WORKERS = 4


def make_huey(url: str, *, fsync: bool) -> tuple[SqliteHuey, dict[str, Any]]:
    huey = SqliteHuey("bench", filename=url.removeprefix("sqlite:///"), fsync=fsync, results=False, timeout=30)

    @huey.task()
    def noop(value: int) -> None:
        tasks.noop()

    @huey.task(retries=4, retry_delay=0)
    def fail_once(value: int) -> None:
        tasks.fail_once(value)

    @huey.task()
    def stamp(value: int) -> None:
        tasks.stamp(value)

    @huey.task(retries=4, retry_delay=0)
    def hang(value: int) -> None:
        tasks.hang_thread()

    return huey, {"noop": noop, "fail_once": fail_once, "stamp": stamp, "hang": hang}


class Huey(Peer):
    library = "huey"
    imports = "import huey"
    lacks = "deletes a task before it runs: what a dead worker was executing is lost; keeps no result here"

    def __init__(self, variant: str) -> None:
        super().__init__(variant)
        self.settings = {
            "storage": "SqliteHuey, WAL, "
            + ("fsync=True (synchronous=FULL)" if variant == "fsync" else "fsync off (synchronous=OFF), its default"),
            "consumer": f"{WORKERS} worker threads; 20 for the recovery; polls as by default, from 100 ms up",
            "results": "results=False",
            "retry": "retry_delay=0",
        }

    def prepare(self, url: str) -> None:
        make_huey(url, fsync=self.variant == "fsync")

    @contextlib.contextmanager
    def client(self, url: str) -> Iterator[Any]:
        huey, kinds = make_huey(url, fsync=self.variant == "fsync")

        class Client:
            def one(self, kind: str, value: int) -> None:
                kinds[kind](value)

            def many(self, kind: str, values: list[int]) -> None:
                for value in values:  # it has no call for many
                    kinds[kind](value)

        yield Client()
        huey.storage.close()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        huey, _ = make_huey(url, fsync=self.variant == "fsync")
        ready()
        huey.create_consumer(workers=self.threads(WORKERS)).run()

    def left(self, url: str) -> int:
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as connection:
            row = connection.execute("SELECT (SELECT count(*) FROM task) + (SELECT count(*) FROM schedule)").fetchone()
            return int(row[0])


if __name__ == "__main__":
    main(Huey)
