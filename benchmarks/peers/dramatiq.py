"""Dramatiq on Redis."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import redis
from dramatiq import Worker, actor, set_broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries, default_middleware

from benchmarks.protocol import Peer, main, tasks

THREADS = 20


def make_broker(url: str) -> tuple[RedisBroker, dict[str, Any]]:
    left_out = {"Prometheus", "Retries"}  # the first serves HTTP; the second is added as set here
    kept = [one() for one in default_middleware if one.__name__ not in left_out]
    broker = RedisBroker(url=url, middleware=[*kept, Retries(max_retries=4, min_backoff=1, max_backoff=1)])
    set_broker(broker)

    @actor
    def noop(value: int) -> None:
        tasks.noop()

    @actor
    def fail_once(value: int) -> None:
        tasks.fail_once(value)

    @actor
    def stamp(value: int) -> None:
        tasks.stamp(value)

    @actor
    def hang(value: int) -> None:
        tasks.hang_thread()

    return broker, {"noop": noop, "fail_once": fail_once, "stamp": stamp, "hang": hang}


class Dramatiq(Peer):
    library = "dramatiq"
    brings = ("redis",)
    imports = "import dramatiq, dramatiq.brokers.redis"
    settings = {  # noqa: RUF012
        "worker": f"worker_threads={THREADS}, else defaults; without the Prometheus middleware",
        "retry": "min_backoff=1 ms, max_backoff=1 ms",
    }
    lacks = "keeps no result here; Redis may lose the last second"

    @contextlib.contextmanager
    def client(self, url: str) -> Iterator[Any]:
        _, kinds = make_broker(url)

        class Client:
            def one(self, kind: str, value: int) -> None:
                kinds[kind].send(value)

            def many(self, kind: str, values: list[int]) -> None:
                for value in values:  # it has no call for many
                    kinds[kind].send(value)

        yield Client()

    def work(self, url: str, ready: Callable[[], None]) -> None:
        broker, _ = make_broker(url)
        ready()
        Worker(broker, worker_threads=THREADS).start()
        threading.Event().wait()

    def left(self, url: str) -> int:
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            return sum(client.hlen(f"dramatiq:{queue}.msgs") for queue in ("default", "default.DQ"))


if __name__ == "__main__":
    main(Dramatiq)
