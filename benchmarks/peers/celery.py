"""Celery on Redis."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import redis
from celery import Celery

from benchmarks.protocol import Peer, main, tasks

THREADS = 20
PREFETCH = 10


def make_app(url: str) -> Celery:
    app = Celery("bench", broker=url)
    app.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH,
        broker_connection_retry_on_startup=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )

    @app.task(name="noop")
    def noop(value: int) -> None:
        tasks.noop()

    @app.task(name="fail_once", autoretry_for=(Exception,), default_retry_delay=0, max_retries=4)
    def fail_once(value: int) -> None:
        tasks.fail_once(value)

    @app.task(name="stamp")
    def stamp(value: int) -> None:
        tasks.stamp(value)

    @app.task(name="hang", max_retries=4)
    def hang(value: int) -> None:
        tasks.hang_thread()

    return app


class CeleryPeer(Peer):
    library = "celery"
    brings = ("redis", "kombu")
    imports = "from celery import Celery; Celery('a').tasks"  # it imports itself when it is used
    settings = {  # noqa: RUF012
        "worker": f"-P threads -c {THREADS} --without-gossip --without-mingle --without-heartbeat",
        "configuration": f"worker_prefetch_multiplier={PREFETCH}, task_ignore_result, early acknowledgement (its default)",
        "retry": "autoretry_for, default_retry_delay=0",
    }
    lacks = "acknowledges before it runs: what a dead worker was executing is lost; Redis may lose the last second"

    @contextlib.contextmanager
    def client(self, url: str) -> Iterator[Any]:
        app = make_app(url)

        class Client:
            def one(self, kind: str, value: int) -> None:
                app.tasks[kind].apply_async((value,))

            def many(self, kind: str, values: list[int]) -> None:
                for value in values:  # it has no call for many
                    self.one(kind, value)

        with app.connection_for_write():
            yield Client()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        app = make_app(url)
        ready()
        app.Worker(
            pool="threads",
            concurrency=THREADS,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel="CRITICAL",
            quiet=True,
        ).start()

    def left(self, url: str) -> int:
        # With early acknowledgement whatever is not in the list is done, as far as the broker knows.
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            return int(client.llen("celery")) + int(client.zcard("unacked_index"))


if __name__ == "__main__":
    main(CeleryPeer)
