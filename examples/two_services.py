"""One service starts by name what another implements; until a worker knows the name, the run waits, visibly."""

import asyncio

from action_retrier import ActionRetrier, App, Success

# Two Apps on one database, as two programs would have them.
shop = App("sqlite:///two_services.db")
mailer = App("sqlite:///two_services.db")
retrier = ActionRetrier(shop)


@shop.action(queue="shop")
async def check_stock() -> str:
    return "plenty"


async def main() -> None:
    async with shop.worker() as shop_worker:
        run_id = await retrier.run(shop, "mailer:send", {"to": "ines@example.com"}, queue="mail")
        await shop_worker.until_idle()
        run = await retrier.get(shop, run_id)
        assert (run.state, run.blocked_by) == ("pending", "mailer:send")
        print(f"waiting for a worker that knows {run.blocked_by}")

        @mailer.action(name="mailer:send")
        async def send(to: str) -> str:
            return f"sent to {to}"

        async with mailer.worker(queues=["mail"]):
            assert await retrier.wait(shop, run_id) == Success("sent to ines@example.com")


if __name__ == "__main__":
    asyncio.run(main())
