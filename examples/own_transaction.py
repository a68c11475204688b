"""Start a run in your own transaction: it exists if your writes do, and no action starts before the commit."""

import sqlite3
from contextlib import closing

from action_retrier import App, MutationCtx, RunNotFound, Success, SyncActionRetrier

app = App("sqlite:///shop.db")
retrier = SyncActionRetrier(app)


@app.action
def send_receipt(order_id: int) -> str:
    return f"sent the receipt of order {order_id}"


def main() -> None:
    app.run_mutation_sync(create_tables)

    # IMMEDIATE has sqlite3 begin with the write lock, so that no transaction fails halfway because of another one.
    with closing(sqlite3.connect("shop.db", timeout=30, isolation_level="IMMEDIATE")) as db, app.worker() as worker:
        with db:  # commits
            order_id = db.execute("INSERT INTO orders (state) VALUES ('paid')").lastrowid
            sent = retrier.run(db, send_receipt, {"order_id": order_id})

        db.execute("INSERT INTO orders (state) VALUES ('doubtful')")
        never_sent = retrier.run(db, send_receipt, {"order_id": 2})
        db.rollback()

        assert retrier.wait(app, sent) == Success("sent the receipt of order 1")
        worker.until_idle()
        try:
            retrier.status(app, never_sent)
        except RunNotFound as error:
            print(f"rolled back: {error}")
        else:
            raise AssertionError("a run of a rolled back transaction exists")
        assert db.execute("SELECT id, state FROM orders").fetchall() == [(1, "paid")]


@app.mutation
def create_tables(ctx: MutationCtx) -> None:
    ctx.db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT NOT NULL)")


if __name__ == "__main__":
    main()
