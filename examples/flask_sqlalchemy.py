"""Flask and SQLAlchemy: an order and the run that charges it commit together, and the callback uses the model."""

from flask import Flask, Response, jsonify
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from action_retrier import App, MutationCtx, RunResult, Success, SyncActionRetrier, to_json

engine = create_engine("sqlite:///shop.db")  # or postgresql+psycopg://
app = App(engine)
retrier = SyncActionRetrier(app)
web = Flask(__name__)


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(default="new")


@app.action
def charge(order_id: int) -> str:
    return f"receipt of order {order_id}"  # a call to the payment service, in real life


@app.mutation
def settle(ctx: MutationCtx, result: RunResult, context: int) -> None:
    ctx.session.get_one(Order, context).state = "paid" if isinstance(result, Success) else "refused"


@web.post("/orders")
def place_order() -> object:
    with Session(engine) as session, session.begin():  # commits unless something raises
        order = Order()
        session.add(order)
        session.flush()
        run_id = retrier.run(session, charge, {"order_id": order.id}, on_complete=settle, context=order.id)
        return jsonify(order=order.id, run=run_id)


@web.get("/runs/<run_id>")
def status(run_id: str) -> object:
    with Session(engine) as session:
        return Response(to_json(retrier.status(session, run_id)), mimetype="application/json")


def main() -> None:
    Base.metadata.create_all(engine)
    client = web.test_client()
    with app, app.worker():  # or a process of its own: action-retrier worker flask_sqlalchemy:app
        placed = client.post("/orders").get_json()
        retrier.wait(app, placed["run"], timeout_ms=10_000)
        answer = client.get(f"/runs/{placed['run']}").get_json()
        with Session(engine) as session:
            state = session.get_one(Order, placed["order"]).state
    engine.dispose()
    assert answer == {"type": "completed", "result": {"type": "success", "returnValue": "receipt of order 1"}}
    assert state == "paid"
    print(f"order {placed['order']} is {state}: {answer['result']['returnValue']}")


if __name__ == "__main__":
    main()
