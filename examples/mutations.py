"""Mutations: transactions of your own, from anywhere; and runs that start runs."""

import asyncio

from action_retrier import ActionCtx, ActionRetrier, App, MutationCtx

app = App("sqlite:///mutations.db")
retrier = ActionRetrier(app)


@app.mutation
def create_tables(ctx: MutationCtx) -> None:
    ctx.db.execute("CREATE TABLE pages (url TEXT PRIMARY KEY, links INTEGER)")


@app.mutation
async def take(ctx: MutationCtx, url: str, links: list[str]) -> int:
    """Store a page, and start a run for each new link: all of it, or nothing."""
    ctx.db.execute("INSERT INTO pages VALUES (?, ?)", (url, len(links)))
    new = [link for link in links if not ctx.db.execute("SELECT 1 FROM pages WHERE url = ?", (link,)).fetchone()]
    for link in new:
        await retrier.run(ctx, crawl, {"url": link}, idempotency_key=link)
    return len(new)


@app.action
async def crawl(ctx: ActionCtx, url: str) -> int:
    links = {"/": ["/a", "/b"], "/a": ["/", "/b"], "/b": ["/a"]}[url]  # fetched, in real life
    started: int = await ctx.run_mutation(take, {"url": url, "links": links})
    return started


async def main() -> None:
    await app.run_mutation(create_tables)
    async with app.worker() as worker:
        await retrier.run(app, crawl, {"url": "/"}, idempotency_key="/")
        await worker.until_idle()
    async with app.transaction() as ctx:
        pages = ctx.db.execute("SELECT url, links FROM pages ORDER BY url").fetchall()
    assert pages == [("/", 2), ("/a", 2), ("/b", 1)]
    print(*pages, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
