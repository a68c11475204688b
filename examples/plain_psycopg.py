"""
Plain psycopg on PostgreSQL: an order and the run that charges it commit together, in a connection of your own.

Uses the database that ``$DATABASE_URL`` names. Without it, in a checkout of this project, the
PostgreSQL 18 that its tests bring along is started for as long as this runs.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import psycopg

from action_retrier import App, MutationCtx, RunResult, Success, SyncActionRetrier, to_json


@contextmanager
def database() -> Iterator[str]:
    url = os.environ.get("DATABASE_URL")
    if url:
        yield url
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.support.postgres_server import running_server  # noqa: PLC0415 - for want of a database of your own

    with running_server() as server:
        yield server.url


def serve(url: str) -> None:
    app = App(url)
    retrier = SyncActionRetrier(app)

    @app.action(name="charge")
    def charge(order_id: int) -> str:
        return f"receipt of order {order_id}"  # a call to the payment service, in real life

    @app.mutation(name="settle")
    def settle(ctx: MutationCtx, result: RunResult, context: int) -> None:
        state = "paid" if isinstance(result, Success) else "refused"
        ctx.db.execute("UPDATE orders SET state = %s WHERE id = %s", (state, context))

    class Shop(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with psycopg.connect(url) as connection:  # commits unless something raises
                row = connection.execute("INSERT INTO orders (state) VALUES ('new') RETURNING id").fetchone()
                assert row is not None
                run_id = retrier.run(connection, charge, {"order_id": row[0]}, on_complete=settle, context=row[0])
            self.answer({"order": row[0], "run": run_id})

        def do_GET(self) -> None:
            with psycopg.connect(url) as connection:
                self.answer(json.loads(to_json(retrier.status(connection, self.path.removeprefix("/")))))

        def answer(self, value: object) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: object) -> None: ...

    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS orders; CREATE TABLE orders (id serial PRIMARY KEY, state text)")
    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server, app, app.worker():
        Thread(target=server.serve_forever, daemon=True).start()
        shop = f"http://127.0.0.1:{server.server_port}"
        placed = httpx.post(f"{shop}/orders").json()
        retrier.wait(app, placed["run"], timeout_ms=10_000)
        answer = httpx.get(f"{shop}/{placed['run']}").json()
        server.shutdown()
    with psycopg.connect(url) as connection:
        orders = connection.execute("SELECT id, state FROM orders").fetchall()
    assert answer == {"type": "completed", "result": {"type": "success", "returnValue": "receipt of order 1"}}
    assert orders == [(1, "paid")]
    print(f"order 1 is {orders[0][1]}: {answer['result']['returnValue']}")


def main() -> None:
    with database() as url:
        serve(url)


if __name__ == "__main__":
    main()
