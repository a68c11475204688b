"""FastAPI and async SQLAlchemy: an order and the run that charges it commit together; the callback uses the model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from action_retrier import ActionRetrier, App, MutationCtx, RunResult, RunStatus, Success

engine = create_async_engine("sqlite+aiosqlite:///shop.db")  # or postgresql+psycopg://, postgresql+asyncpg://
sessions = async_sessionmaker(engine, expire_on_commit=False)
app = App(engine)
retrier = ActionRetrier(app)


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(default="new")


@app.action
async def charge(order_id: int) -> str:
    return f"receipt of order {order_id}"  # a call to the payment service, in real life


@app.mutation
async def settle(ctx: MutationCtx, result: RunResult, context: int) -> None:
    order = await ctx.session.get_one(Order, context)
    order.state = "paid" if isinstance(result, Success) else "refused"


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as opened, opened.begin():  # commits when the request has been answered without an error
        yield opened


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with app, app.worker():  # or a process of its own: action-retrier worker fastapi_sqlalchemy:app
        yield
    await engine.dispose()


api = FastAPI(lifespan=lifespan)
RequestSession = Annotated[AsyncSession, Depends(session, scope="function")]  # ends before the answer is sent


@api.post("/orders")
async def place_order(session: RequestSession) -> dict[str, int | str]:
    order = Order()
    session.add(order)
    await session.flush()
    run_id = await retrier.run(session, charge, {"order_id": order.id}, on_complete=settle, context=order.id)
    return {"order": order.id, "run": run_id}


@api.get("/runs/{run_id}")
async def status(run_id: str, session: RequestSession) -> RunStatus:
    return await retrier.status(session, run_id)


async def main() -> None:
    async with (
        lifespan(api),
        httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://shop") as client,
    ):
        placed = (await client.post("/orders")).json()
        await retrier.wait(app, placed["run"], timeout_ms=10_000)
        answer = (await client.get(f"/runs/{placed['run']}")).json()
        async with sessions() as opened:
            order = await opened.get_one(Order, placed["order"])
    assert answer == {"type": "completed", "result": {"type": "success", "returnValue": "receipt of order 1"}}
    assert order.state == "paid"
    print(f"order {order.id} is {order.state}: {answer['result']['returnValue']}")


if __name__ == "__main__":
    asyncio.run(main())
